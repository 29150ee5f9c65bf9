"""The cascade's networks on a device: what comes in is moved there, and cut into tiles that fit.

The only place that moves tensors between devices and dtypes, and that knows memory.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from diffusion.pipelines.blending import (
    Runner,
    Tiles,
    Units,
    apply_in_tiles,
    blended_spans,
    chunk_spans,
    run_here,
)
from diffusion.pipelines.cut_options import TileSizes
from diffusion.pipelines.distributed import run_together
from diffusion.pipelines.fitting_tile import FittingTile, check_fits
from diffusion.pipelines.networks import Networks, for_inference
from diffusion.pipelines.padding import pad_edges, pad_reflect, round_up
from diffusion.pipelines.streams import Segment, WindowedStream, recut
from diffusion.utils.compute import Compute, inference
from diffusion.utils.devices import sent

LATENT = 8  # pixels of a VAE latent, in which tiles are given, where no VAE is loaded


class TiledNetworks:
    """Videos are (B, 3, F, H, W) in [-1, 1], and latents (B, C, F, h, w), on any device.

    networks: stay as they are; see `for_inference`.
    live: the networks themselves, which may learn and move; see Cascade.
    dtype: of the refiner's arithmetic, all of it. The others keep float32 weights and run under
        autocast, because their last layers are what the eye sees.
    """

    def __init__(
        self,
        networks: Networks,
        tiles: TileSizes,
        compute: Compute,
        device: torch.device,
        dtype: torch.dtype,
        *,
        live: bool = False,
    ):
        self.device, self.dtype, self.tiles, self.live = device, dtype, tiles, live
        self.compute = compute.on(device, dtype)
        self.networks = networks if live else self._prepared(networks)
        self.fitting_tile = FittingTile(device, tiles.memory_gb)
        self.run: Runner = run_here
        self.group = 1  # windows that `run` is given at a time
        # with their weights on the device
        self._cuts: dict[tuple[Any, ...], tuple[Tiles, Tiles]] = {}

    def _prepared(self, networks: Networks) -> Networks:
        own = Networks(
            for_inference(networks.compressor, self.device),
            for_inference(networks.previewer, self.device),
            for_inference(networks.vae, self.device),
            for_inference(networks.refiner, self.device, self.dtype),
        )
        for network in filter(None, (own.compressor, own.previewer, own.vae)):
            self.compute.prepare(network)
        if own.refiner is not None:
            self.compute.prepare(own.refiner, own.refiner.blocks)
        return own

    def spread(self) -> None:
        """Share windows and tiles out among the processes of torch.distributed, from now on."""
        self.run, self.group = run_together, dist.get_world_size()
        self.fitting_tile.together = True

    def sent(self, tensor: Tensor) -> Tensor:
        return sent(tensor, self.device)

    def encode(self, video: Tensor) -> Tensor:
        """-> semantic latents (B, C, F, H/32, W/32); sides are padded by reflection."""
        compressor = self.networks.require("compressor")
        step = compressor.spatial_compression
        video = pad_reflect(self.sent(video), step)
        return self._in_tiles(compressor, "encode", [video], step, (step, 1))[0].float()

    def preview(self, latents: Tensor) -> Tensor:
        """Semantic latents -> (B, 3, F, H', W')."""
        step = self.networks.require("compressor").spatial_compression
        previewer, latents = self.networks.require("previewer"), self.sent(latents)
        scale = (1, previewer.upscaling)
        (preview,) = self._in_tiles(previewer, "decode", [latents], step, scale)
        return preview.float().clamp(-1, 1)

    def encode_vae(self, video: Tensor) -> Tensor:
        """(B, 3, F, H, W), sides multiples of 8 -> VAE latents (B, 4, F, H/8, W/8): the mean."""
        vae, video = self.networks.require("vae"), self.sent(video)
        step = vae.spatial_compression
        return self._in_tiles(vae, "encode", [video], step, (step, 1))[0].float()

    def decode_vae(self, pieces: Iterable[Tensor], num_frames: int) -> Iterator[Tensor]:
        """VAE latents (B, 4, f, h, w) of any numbers of frames -> (B, 3, f, 8h, 8w)."""
        vae = self.networks.require("vae")
        spans = chunk_spans(num_frames, vae.decode_chunk, vae.decode_overlap).to(self.device)
        step = vae.spatial_compression

        def decode(windows: Units) -> list[Tensor]:
            latents = [window for (window,) in windows]
            return self._in_tiles(vae, "decode", latents, step, (1, step))

        stream = WindowedStream[Segment](decode, spans, self.group)
        lengths = (stop - start for start, stop in spans.segments)
        frames = recut(((self.sent(piece),) for piece in pieces), lengths)
        for bounds, part in zip(spans.segments, frames, strict=True):
            for _, video in stream.push(Segment(*bounds, part)):
                yield video.float().clamp(-1, 1)

    def predict(
        self, windows: Units, timestep: Tensor, num_frames: int, *, image_mode: bool
    ) -> list[Tensor]:
        """x_t and condition of windows (B, C, f, h, w) -> the refiner's prediction for each.

        timestep: a number, on the device.
        num_frames: that the refiner is given: shorter windows are padded.
        """
        refiner, channels = self.networks.require("refiner"), windows[0][0].shape[1]
        _, _, frames, rows, columns = windows[0][0].shape
        timesteps = timestep.expand(len(windows[0][0]))

        def net(x_t: Tensor, condition: Tensor) -> Tensor:
            # all of it in the weights' precision
            with self._inference(torch.float32):
                out = refiner(x_t, timesteps, condition, image_mode=image_mode)
            return out[:, :channels]  # without the variance

        _, *multiples = refiner.size_multiple
        high, wide = map(round_up, (rows, columns), multiples)
        tile = self.tiles.tile or self._refiner_tile(net, windows[0], (num_frames, high, wide))
        # a side that is cut into tiles is as long as it is: the tiles fit the grids
        high, wide = rows if rows > tile else high, columns if columns > tile else wide
        size = (num_frames, high, wide)
        units: Units = [
            (pad_edges(x_t, size), pad_edges(c.to(self.dtype), size)) for x_t, c in windows
        ]
        tiles, _ = self._cut(
            ("refiner", high, wide, tile),
            lambda: self.tiles.refiner_tiles(high, wide, tile, refiner.patch_size),
        )
        predictions = apply_in_tiles(net, units, tiles, run=self.run)
        return [p[:, :, :frames, :rows, :columns] for p in predictions]

    def check_size(self, height: int, width: int, frames_in_flight: int) -> None:
        """Refuse frames of which what a stream holds whole does not fit, whatever the tiles."""
        vae, refiner = self.networks.require("vae"), self.networks.require("refiner")
        # x_t, prediction and condition in float32, and the preview in 8 bits
        latent_bytes = 4 * (8 + refiner.condition_channels) / vae.spatial_compression**2
        # decoded frames in float32: a chunk, its weighted form and the blended sum
        bytes_per_pixel = frames_in_flight * (latent_bytes + 3) + 3 * 12 * vae.decode_chunk
        check_fits(height, width, bytes_per_pixel, self.fitting_tile.budget())

    def _in_tiles(
        self, part: nn.Module, method: str, xs: list[Tensor], step: int, scale: tuple[int, int]
    ) -> list[Tensor]:
        """part.method(x) of every x, in tiles where whole frames do not fit.

        step: pixels per position, in which tiles are counted. scale: how many values in, and out,
        there are per position.
        """

        def net(x: Tensor) -> Tensor:
            with self._inference(self.dtype):
                return getattr(part, method)(x)

        batch, channels, frames, rows, columns = xs[0].shape
        size = rows // scale[0], columns // scale[0]

        def run(*tile: int) -> Tensor:
            shape = (batch, channels, frames, *(scale[0] * side for side in tile))
            return net(torch.empty(shape, device=self.device))

        if self.tiles.vae_tile:
            vae = self.networks.vae
            latent = LATENT if vae is None else vae.spatial_compression
            tile = max(2, self.tiles.vae_tile * latent // step)
        else:
            tile = self.fitting_tile(part, method, size, step, batch * frames, run)
        tiles_in, tiles_out = self._cut(
            (size, tile, scale),
            lambda: Tiles(*(blended_spans(side, tile, tile // 4) for side in size)),
            scale,
        )
        return apply_in_tiles(net, [(x,) for x in xs], tiles_in, tiles_out, self.run)

    def _inference(self, dtype: torch.dtype) -> AbstractContextManager[None]:
        return inference(self.device, dtype, self.compute, gradients=self.live)

    def _cut(
        self, key: tuple[Any, ...], make: Callable[[], Tiles], scale: tuple[int, int] = (1, 1)
    ) -> tuple[Tiles, Tiles]:
        """Tiles of what goes in and of what comes out; made once for every `key`."""
        if key not in self._cuts:
            tiles = make()
            before, after = (tiles if s == 1 else tiles.scaled(s) for s in scale)
            self._cuts[key] = before.to(self.device), after.to(self.device)
        return self._cuts[key]

    def _refiner_tile(
        self, net: Callable[..., Tensor], unit: tuple[Tensor, ...], size: tuple[int, int, int]
    ) -> int:
        """What fits, in VAE latents: a multiple of what the grids need."""
        refiner, vae = self.networks.require("refiner"), self.networks.require("vae")
        multiple, batch = refiner.size_multiple[1], len(unit[0])
        frames, *sides = size

        def run(*tile: int) -> Tensor:
            shape = (frames, *(multiple * side for side in tile))
            x_t, condition = (
                torch.empty(batch, x.shape[1], *shape, dtype=dtype, device=self.device)
                for x, dtype in zip(unit, (torch.float32, self.dtype), strict=True)
            )
            return net(x_t, condition)

        rows, columns = (side // multiple for side in sides)
        pixels = vae.spatial_compression * multiple
        return multiple * self.fitting_tile(
            refiner, "predict", (rows, columns), pixels, batch * frames, run
        )
