"""The cascade: semantic compressor -> diffusion transformer -> VAE decoder.

After Wuerstchen (Pernias et al. 2023, arXiv:2306.00637), with a video VAE at the end.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
import torch.distributed as dist
from einops import rearrange
from torch import Tensor, nn

from diffusion.noise.gaussian import GaussianDiffusion
from diffusion.noise.samplers import Trajectory, build_sampler, frame_generators
from diffusion.pipelines.blending import (
    Runner,
    Spans,
    Tiles,
    Units,
    apply_in_tiles,
    blended_spans,
    chunk_spans,
    published_tiles,
    published_windows,
    run_here,
)
from diffusion.pipelines.conditioning import Conditioning
from diffusion.pipelines.distributed import run_together
from diffusion.pipelines.fitting_tile import FittingTile, check_fits
from diffusion.pipelines.padding import pad_edges, pad_reflect, round_up
from diffusion.pipelines.streams import (
    Frames,
    NoisySegment,
    Segment,
    WindowedStream,
    denoise_stream,
    recut,
)
from diffusion.utils.errors import ConfigError
from diffusion.utils.progress import track


class CascadePipeline:
    """Encodes a video to semantic latents and restores it from them.

    Videos are (B, 3, F, H, W) in [-1, 1] of any size and length, semantic latents (B, 16, F, h, w)
    with h = H / 32 rounded up, VAE latents (B, 4, F, 4h, 4w). The networks stay loaded; one that
    is None cannot be used (encoding needs the compressor alone).

    window, window_overlap: frames that the refiner takes at a time; longer clips go through
        overlapping windows that are blended at every sampler step.
    tile, tile_overlap: the same for rows and columns of VAE latents. Without a tile the refiner
        takes whole frames if they fit into memory; without an overlap it is a quarter of the tile.
    vae_tile: the same for the other networks, whose tiles are blended in their results.
    memory_gb: what may be used of the free memory; tile sizes that are not given follow from it.
    euler_a_spacing: see build_sampler.
    published: sample as the published implementation did, defects included: tiles overwrite each
        other, windows are blended unevenly, DDIM clips, DPM-Solver++ stops short of zero noise.
    """

    def __init__(
        self,
        *,
        compressor: nn.Module | None,
        previewer: nn.Module | None,
        vae: nn.Module | None,
        refiner: nn.Module | None,
        noise: GaussianDiffusion,
        conditioning: Conditioning | None,
        window: int = 8,
        window_overlap: int = 4,
        tile: int | None = None,
        tile_overlap: int | None = None,
        vae_tile: int | None = None,
        memory_gb: float | None = None,
        euler_a_spacing: str = "even",
        published: bool = False,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        self.compressor, self.previewer = compressor, previewer
        self.vae, self.refiner = vae, refiner
        self.noise = noise
        self.conditioning = conditioning
        self.window, self.window_overlap = window, window_overlap
        self.tile, self.tile_overlap = tile, tile_overlap
        self.vae_tile = vae_tile
        self.euler_a_spacing = euler_a_spacing
        self.published = published
        self.device, self.dtype = torch.device(device), dtype
        self.fitting_tile = FittingTile(self.device, memory_gb)
        self.run: Runner = run_here
        self.group = 1  # windows that `run` is given at a time
        for part in filter(None, (compressor, previewer, vae, refiner)):
            part.to(self.device).eval().requires_grad_(False)
        # The transformer's arithmetic is all in `dtype`; the others keep float32 weights and
        # run under autocast, because their last layers are what the eye sees.
        if refiner is not None:
            refiner.to(dtype)
            self._check_windows()

    def encode(self, video: Tensor) -> Tensor:
        """(B, 3, F, H, W) -> (B, C, F, h, w); sides are padded by reflection to multiples of 32.

        Raises UserError for frames too small to be padded.
        """
        step = self.compressor.spatial_compression
        video = pad_reflect(video, step).to(self.device)
        return self._in_tiles(self.compressor, "encode", [video], step, (step, 1))[0].float()

    def encode_vae(self, video: Tensor) -> Tensor:
        """(B, 3, F, H, W), sides multiples of 8 -> VAE latents (B, 4, F, H/8, W/8): the mean."""
        step = self.vae.spatial_compression
        video = video.to(self.device)
        return self._in_tiles(self.vae, "encode", [video], step, (step, 1))[0].float()

    def preview(self, latents: Tensor) -> Tensor:
        """(B, C, F, h, w) -> (B, 3, F, H', W'): what the compressor kept, without diffusion."""
        step, scale = self.compressor.spatial_compression, (1, self.previewer.upscaling)
        latents = latents.to(self.device)
        (preview,) = self._in_tiles(self.previewer, "decode", [latents], step, scale)
        return preview.float().clamp(-1, 1)

    def decode(
        self,
        latents: Tensor,
        *,
        steps: int = 8,
        sampler: str = "euler_a",
        seed: int = 0,
        preview: Tensor | None = None,
    ) -> Tensor:
        """(B, C, F, h, w) -> (B, 3, F, 32h, 32w) in [-1, 1]: `restore`, then the VAE's decoder.

        Same seed and machine, same result.

        preview: what `preview(latents)` gave, if it is at hand.
        """
        return self.decode_vae(
            self.restore(latents, steps=steps, sampler=sampler, seed=seed, preview=preview)
        )

    def reconstruct(
        self, video: Tensor, *, steps: int = 8, sampler: str = "euler_a", seed: int = 0
    ) -> Tensor:
        """(B, 3, F, H, W) -> the same shape: encode, decode, and cut the padding off."""
        height, width = video.shape[-2:]
        decoded = self.decode(self.encode(video), steps=steps, sampler=sampler, seed=seed)
        return decoded[..., :height, :width]

    def restore(
        self,
        latents: Tensor,
        *,
        steps: int = 8,
        sampler: str = "euler_a",
        seed: int = 0,
        preview: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Semantic latents (B, C, F, h, w) -> VAE latents (B, 4, F, 4h, 4w), by diffusion.

        noise: what to start from, in place of a draw from `seed`.
        """
        pieces = [(latents, preview)]
        options = {"steps": steps, "sampler": sampler, "seed": seed, "noise": noise}
        return torch.cat(list(self.restore_stream(pieces, latents.shape[2], **options)), dim=2)

    def restore_stream(
        self,
        pieces: Iterable[tuple[Tensor, Tensor | None]],
        num_frames: int,
        *,
        steps: int = 8,
        sampler: str = "euler_a",
        seed: int = 0,
        noise: Tensor | None = None,
        finished: Sequence[Tensor] = (),
    ) -> Iterator[Tensor]:
        """`restore` of a clip of which not all is there at once, and to the same result.

        pieces: semantic latents and preview (or None) of any number of frames each, `num_frames` in
            all, asked for as they are needed.
        finished: the first results of a run that was broken off. They are given out again; what
            they share with later ones is computed again.
        -> VAE latents (B, 4, f, 4h, 4w), one after the other for `time_spans(num_frames).segments`.
        """
        spans, scheduler = self.time_spans(num_frames), self._sampler(sampler, steps)
        # the last one is computed in any case, and with it all pieces are read
        kept = min(len(finished), len(spans.starts) - 1)
        first = kept
        for _ in range(steps):  # every step looks one window further back
            first = spans.first_before(first)
        lengths = (stop - start for start, stop in spans.segments)
        parts = recut(map(self._with_preview, pieces), lengths)
        for i in range(first):
            next(parts)
            yield finished[i]

        spans = spans.since(first)
        ticks = iter(track(range(steps * len(spans.starts))))

        def predict(windows: Units, t: Tensor) -> Iterable[Tensor]:
            for _ in windows:
                next(ticks, None)
            return self._predict(windows, t, is_image=num_frames == 1)

        noisy = self._noisy_segments(parts, spans, scheduler, seed, noise)
        done = denoise_stream(noisy, spans, predict, scheduler.timesteps, self.group)
        for i, segment in enumerate(done, first):
            (condition,) = segment.frames
            base = self.conditioning.base_of(condition)
            yield finished[i] if i < kept else self.conditioning.from_x0(segment.x, base)

    def spread(self) -> None:
        """Share windows and tiles out among the processes of torch.distributed, from now on."""
        self.run, self.group = run_together, dist.get_world_size()
        self.fitting_tile.together = True

    def check_size(self, height: int, width: int, steps: int) -> None:
        """Refuse frames of which what a stream holds whole does not fit, whatever the tiles."""
        in_flight = self.window + steps * (self.window - self.window_overlap)
        # x_t, prediction and condition in float32, and the preview in 8 bits
        latent_bytes = 4 * (8 + self.refiner.condition_channels) / self.vae.spatial_compression**2
        # decoded frames in float32: a chunk, its weighted form and the blended sum
        bytes_per_pixel = in_flight * (latent_bytes + 3) + 3 * 12 * self.vae.decode_chunk
        check_fits(height, width, bytes_per_pixel, self.fitting_tile.budget())

    def time_spans(self, num_frames: int) -> Spans:
        """The windows in which the refiner sees a clip; results come in their segments."""
        if self.published:
            return published_windows(num_frames, self.window)
        return chunk_spans(num_frames, self.window, self.window_overlap)

    def decode_vae(self, latents: Tensor) -> Tensor:
        """VAE latents (B, 4, F, 4h, 4w) -> (B, 3, F, 32h, 32w) in [-1, 1]."""
        return torch.cat(list(self.decode_vae_stream([latents], latents.shape[2])), dim=2)

    def decode_vae_stream(self, pieces: Iterable[Tensor], num_frames: int) -> Iterator[Tensor]:
        """`decode_vae` of latents that come in pieces of any number of frames."""
        spans = chunk_spans(num_frames, self.vae.decode_chunk, self.vae.decode_overlap)
        stream = WindowedStream[Segment](self._decode_windows, spans, self.group)
        lengths = (stop - start for start, stop in spans.segments)
        frames = recut(((piece,) for piece in pieces), lengths)
        for bounds, part in zip(spans.segments, frames, strict=True):
            for _, video in stream.push(Segment(*bounds, part)):
                yield video.float().clamp(-1, 1)

    def base(self, latents: Tensor, preview: Tensor | None = None) -> Tensor | None:
        """VAE latents of the preview (B, 4, F, 4h, 4w), where the refiner builds on them."""
        if not self.conditioning.uses_base:
            return None
        return self.encode_vae(self.preview(latents) if preview is None else preview)

    def _check_windows(self) -> None:
        """Refuse windows and tiles that the refiner's grids cannot take."""
        time, space, _ = self.refiner.size_multiple
        for name, length, overlap, multiple in (
            ("window", self.window, self.window_overlap, time),
            ("tile", self.tile, self._overlap(self.tile or 0), space),
        ):
            if length is None:
                continue
            if length < 1 or length % multiple or not 0 <= overlap < length:
                raise ConfigError(
                    f"cascade.{name}={length} with {name}_overlap={overlap} does not fit this "
                    f"model; use a multiple of {multiple} that is larger than the overlap"
                )

    def _sampler(self, name: str, steps: int):
        return build_sampler(
            name,
            num_inference_steps=steps,
            prediction_type=self.noise.prediction_type,
            num_train_timesteps=self.noise.num_train_timesteps,
            beta_schedule=self.noise.beta_schedule,
            euler_a_spacing=self.euler_a_spacing,
            published=self.published,
        )

    def _noisy_segments(
        self, parts: Iterator[Frames], spans: Spans, sampler, seed: int, noise: Tensor | None
    ) -> Iterator[NoisySegment]:
        """Latents, and preview, of each segment -> noise with its condition.

        noise: (B, 4, F, h, w), or None for a draw from `seed`.
        """
        for (start, stop), part in zip(spans.segments, parts, strict=True):
            condition = self._condition(*part)
            batch, _, _, *sides = condition.shape
            generators = frame_generators(seed, range(start, stop), batch)
            if noise is None:
                size = (self.vae.latent_channels, *sides)
                drawn = torch.stack([torch.randn(size, generator=g) for g in generators])
            else:
                drawn = rearrange(noise[:, :, start:stop], "b c f h w -> (b f) c h w")
            trajectory = Trajectory(sampler, drawn.to(self.device), generators)
            yield NoisySegment(start, stop, (condition,), trajectory)

    def _with_preview(self, piece: tuple[Tensor, Tensor | None]) -> Frames:
        """Latents, and the preview where the refiner builds on it."""
        latents, preview = piece
        if not self.conditioning.uses_base:
            return (latents,)
        return latents, self.preview(latents) if preview is None else preview

    def _condition(self, latents: Tensor, preview: Tensor | None = None) -> Tensor:
        """(B, C, f, h, w), (B, 3, f, H, W) -> what stands beside the noise (B, C', f, 4h, 4w)."""
        return self.conditioning.join(latents.to(self.device).float(), self.base(latents, preview))

    @torch.no_grad()
    def _predict(self, windows: Units, t: Tensor, *, is_image: bool) -> list[Tensor]:
        """x_t and condition of windows (B, C, f, h, w) -> the refiner's prediction for each."""
        frames, rows, columns = windows[0][0].shape[2:]
        _, height, width = self.refiner.size_multiple
        # A short clip becomes one whole window, the length that the refiner was trained on.
        target = (
            1 if is_image else self.window,
            round_up(rows, height),
            round_up(columns, width),
        )
        timestep = t.to(self.device).expand(len(windows[0][0]))

        def net(x_t: Tensor, condition: Tensor) -> Tensor:
            out = self.refiner(x_t, timestep, condition, image_mode=is_image)
            return out[:, : self.vae.latent_channels]  # without the variance

        padded = [
            (pad_edges(x_t, target), pad_edges(condition.to(self.dtype), target))
            for x_t, condition in windows
        ]
        tiles = self._tiles(*target[1:], self._refiner_tile(net, padded))
        predictions = apply_in_tiles(net, padded, tiles, run=self.run)
        return [p[:, :, :frames, :rows, :columns] for p in predictions]

    def _decode_windows(self, windows: Units) -> list[Tensor]:
        """VAE latents (B, 4, f, h, w) of each window -> pixels."""
        step, latents = self.vae.spatial_compression, [window for (window,) in windows]
        return self._in_tiles(self.vae, "decode", latents, step, (1, step))

    def _in_tiles(
        self, part: nn.Module, method: str, xs: list[Tensor], step: int, scale: tuple[int, int]
    ) -> list[Tensor]:
        """part.method(x) of every x, in tiles where whole frames do not fit.

        step: pixels per position, in which tiles are counted. scale: how many values in, and out,
        there are per position.
        """

        def net(x: Tensor) -> Tensor:
            with self._inference():
                return getattr(part, method)(x)

        batch, channels, frames, *sides = xs[0].shape
        size = tuple(side // scale[0] for side in sides)

        def run(*tile: int) -> Tensor:
            shape = (batch, channels, frames, *(scale[0] * side for side in tile))
            return net(torch.empty(shape, device=self.device))

        if self.vae_tile:
            tile = max(2, self.vae_tile * self.vae.spatial_compression // step)
        else:
            tile = self.fitting_tile(part, method, size, step, batch * frames, run)
        tiles = Tiles(*(blended_spans(side, tile, tile // 4) for side in size))
        units = [(x,) for x in xs]
        tiles_in, tiles_out = (tiles.scaled(factor) for factor in scale)
        return apply_in_tiles(net, units, tiles_in, tiles_out, self.run)

    def _tiles(self, rows: int, columns: int, tile: int) -> Tiles:
        """Of the refiner."""
        if self.published:
            return Tiles(published_tiles(rows, tile), published_tiles(columns, tile))
        overlap, patch = self._overlap(tile), self.refiner.patch_size
        return Tiles(
            blended_spans(rows, tile, overlap, patch), blended_spans(columns, tile, overlap, patch)
        )

    def _overlap(self, tile: int) -> int:
        return tile // 4 if self.tile_overlap is None else self.tile_overlap

    def _refiner_tile(self, net, units: Units) -> int:
        """In VAE latents: as given, or as fits; a multiple of what the grids need."""
        if self.tile:
            return self.tile
        step, multiple = self.vae.spatial_compression, self.refiner.size_multiple[1]
        batch, _, frames, *sides = units[0][0].shape
        size = tuple(side // multiple for side in sides)

        def run(*tile: int) -> Tensor:
            shape = (frames, *(multiple * side for side in tile))
            return net(*(torch.empty(batch, x.shape[1], *shape).to(x) for x in units[0]))

        frames *= batch
        return multiple * self.fitting_tile(
            self.refiner, "predict", size, step * multiple, frames, run
        )

    def _inference(self) -> AbstractContextManager:
        return inference(self.device, self.dtype)


@contextmanager
def inference(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """No gradients, and autocast to `dtype` unless that is float32."""
    with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        yield
