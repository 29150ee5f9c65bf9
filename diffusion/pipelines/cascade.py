"""The cascade: semantic compressor -> diffusion transformer -> VAE decoder.

After Wuerstchen (Pernias et al. 2023, arXiv:2306.00637), with a video VAE at the end.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion.noise.gaussian import GaussianDiffusion
from diffusion.noise.samplers import build_sampler, denoise
from diffusion.pipelines.conditioning import Conditioning
from diffusion.pipelines.windows import (
    Windows,
    apply_in_windows,
    blended_spans,
    published_tiles,
    published_windows,
)
from diffusion.utils.errors import ConfigError, UserError


class CascadePipeline:
    """Encodes a video to semantic latents and restores it from them.

    Videos are (B, 3, F, H, W) in [-1, 1] of any size and length, semantic latents (B, 16, F, h, w)
    with h = H / 32 rounded up, VAE latents (B, 4, F, 4h, 4w). The networks stay loaded; one that
    is None cannot be used (encoding needs the compressor alone).

    window, window_overlap: frames that the refiner takes at a time; longer clips go through
        overlapping windows that are blended at every sampler step.
    tile, tile_overlap: the same for rows and columns of VAE latents. Without a tile the refiner
        takes whole frames; without an overlap it is a quarter of the tile.
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
        self.tile = tile
        self.tile_overlap = (tile or 0) // 4 if tile_overlap is None else tile_overlap
        self.euler_a_spacing = euler_a_spacing
        self.published = published
        self.device, self.dtype = torch.device(device), dtype
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
        video = pad_reflect(video, self.compressor.spatial_compression)
        with self._inference():
            return self.compressor.encode(video.to(self.device)).float()

    def encode_vae(self, video: Tensor) -> Tensor:
        """(B, 3, F, H, W), sides multiples of 8 -> VAE latents (B, 4, F, H/8, W/8): the mean."""
        with self._inference():
            return self.vae.encode(video.to(self.device)).float()

    def preview(self, latents: Tensor) -> Tensor:
        """(B, C, F, h, w) -> (B, 3, F, H', W'): what the compressor kept, without diffusion."""
        with self._inference():
            return self.previewer.decode(latents.to(self.device)).float().clamp(-1, 1)

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
        base = self.base(latents, preview)
        condition = self.conditioning.join(latents.to(self.device).float(), base)
        # Drawn on the CPU: the same seed is the same noise on every device.
        generator = torch.Generator().manual_seed(seed)
        if noise is None:
            size = (len(latents), self.vae.latent_channels, *condition.shape[2:])
            noise = torch.randn(size, generator=generator)
        scheduler = build_sampler(
            sampler,
            num_inference_steps=steps,
            prediction_type=self.noise.prediction_type,
            num_train_timesteps=self.noise.num_train_timesteps,
            beta_schedule=self.noise.beta_schedule,
            euler_a_spacing=self.euler_a_spacing,
            published=self.published,
        )
        predict = self._denoiser(condition)
        restored = denoise(predict, scheduler, noise.to(self.device), generator)
        return self.conditioning.from_x0(restored, base)

    def decode_vae(self, latents: Tensor) -> Tensor:
        """VAE latents (B, 4, F, 4h, 4w) -> (B, 3, F, 32h, 32w) in [-1, 1]."""
        with self._inference():
            return self.vae.decode(latents).float().clamp(-1, 1)

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
            ("tile", self.tile, self.tile_overlap, space),
        ):
            if length is None:
                continue
            if length < 1 or length % multiple or not 0 <= overlap < length:
                raise ConfigError(
                    f"cascade.{name}={length} with {name}_overlap={overlap} does not fit this "
                    f"model; use a multiple of {multiple} that is larger than the overlap"
                )

    def _denoiser(self, condition: Tensor):
        """predict(x_t, t) over the whole clip: padded to what the grids need, window by window."""
        frames, rows, columns = condition.shape[2:]
        image_mode = frames == 1
        time, height, width = self.refiner.size_multiple
        # A short clip becomes one whole window, the length that the refiner was trained on.
        padded_frames = 1 if image_mode else round_up(max(frames, self.window), time)
        target = (padded_frames, round_up(rows, height), round_up(columns, width))
        padded = pad_edges(condition.to(self.dtype), target)
        windows = self._windows(target)

        def net(x_t: Tensor, condition: Tensor, t: Tensor) -> Tensor:
            out = self.refiner(x_t, t, condition, image_mode=image_mode)
            return out[:, : self.vae.latent_channels]  # without the variance

        def predict(x_t: Tensor, t: Tensor) -> Tensor:
            out = apply_in_windows(
                lambda x, c, origin: net(x, c, t), windows, pad_edges(x_t, target), padded
            )
            return out[:, :, :frames, :rows, :columns]

        return predict

    def _windows(self, size: tuple[int, int, int]) -> Windows:
        frames, rows, columns = size
        tile, patch = self.tile or max(rows, columns), self.refiner.patch_size
        overlap = self.tile_overlap
        if self.published:
            return Windows(
                published_windows(frames, self.window),
                published_tiles(rows, tile),
                published_tiles(columns, tile),
            )
        return Windows(
            blended_spans(frames, self.window, self.window_overlap),
            blended_spans(rows, tile, overlap, patch),
            blended_spans(columns, tile, overlap, patch),
        )

    def _inference(self) -> AbstractContextManager:
        return inference(self.device, self.dtype)


@contextmanager
def inference(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """No gradients, and autocast to `dtype` unless that is float32."""
    with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        yield


def round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def pad_reflect(video: Tensor, multiple: int) -> Tensor:
    """(B, C, F, H, W) -> bottom and right padded by reflection to multiples of `multiple`."""
    height, width = video.shape[-2:]
    bottom, right = round_up(height, multiple) - height, round_up(width, multiple) - width
    if bottom == right == 0:
        return video
    if bottom >= height or right >= width:
        raise UserError(
            f"frames of {width}x{height} pixels are too small; both sides must be more than half "
            f"of {multiple}: enlarge the video, e.g. with --size {multiple}"
        )
    return F.pad(video, (0, right, 0, bottom, 0, 0), mode="reflect")


def pad_edges(x: Tensor, size: tuple[int, int, int]) -> Tensor:
    """(B, C, F, H, W) -> (B, C, *size), repeating the last frame, row and column."""
    missing = [wanted - had for wanted, had in zip(size, x.shape[2:], strict=True)]
    if not any(missing):
        return x
    frames, rows, columns = missing
    return F.pad(x, (0, columns, 0, rows, 0, frames), mode="replicate")
