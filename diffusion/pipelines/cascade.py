"""The cascade: semantic compressor -> diffusion transformer -> VAE decoder.

After Wuerstchen (Pernias et al. 2023, arXiv:2306.00637), with a video VAE at the end.
"""

from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import replace

import torch
from torch import Tensor

from diffusion.models.autoencoder import Autoencoder
from diffusion.models.dit import VideoDiT
from diffusion.models.interfaces import Compressor, PreviewDecoder
from diffusion.noise.gaussian import GaussianDiffusion
from diffusion.noise.sampling import Sampling
from diffusion.pipelines.blending import Spans
from diffusion.pipelines.conditioning import Conditioning
from diffusion.pipelines.cut_options import TileSizes, Windows
from diffusion.pipelines.networks import Networks
from diffusion.pipelines.restore import Piece, Restorer, Run
from diffusion.pipelines.streams import OnStep
from diffusion.pipelines.tiled import TiledNetworks
from diffusion.utils.compute import Compute
from diffusion.utils.errors import UserError


class Cascade:
    """Encodes a video to semantic latents and restores it from them.

    Videos are (B, 3, F, H, W) in [-1, 1] of any size and length, semantic latents (B, 16, F, h, w)
    with h = H / 32 rounded up, VAE latents (B, 4, F, 4h, 4w). They may come from any device; what
    comes out is on the pipeline's.

    networks: are not changed. Where they are on `device` in the wanted precision already, their
        weights are used as they are; otherwise the pipeline makes a copy, once.
    sampling: what holds where a call gives no `steps` or `sampler`.
    dtype: what the networks compute in.
    live: use the networks themselves, which others train or move meanwhile, and are in the wanted
        precision; gradients are recorded where they are on.

    Methods that sample take
    seed: same seed and machine, same result.
    preview: what `preview(latents)` gave, if it is at hand.
    on_step: called for every SamplerStep.
    """

    def __init__(
        self,
        networks: Networks,
        *,
        noise: GaussianDiffusion,
        conditioning: Conditioning | None,
        windows: Windows = Windows(),
        tiles: TileSizes = TileSizes(),
        sampling: Sampling = Sampling(),
        compute: Compute = Compute(),
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        live: bool = False,
    ):
        self.device, self.dtype = torch.device(device), dtype
        self.windows, self.tiles, self.sampling = windows, tiles, sampling.of(noise)
        if networks.refiner is not None:
            windows.check(networks.refiner)
            tiles.check(networks.refiner)
        self.tiled = TiledNetworks(networks, tiles, compute, self.device, dtype, live=live)
        self.networks, self.compute = self.tiled.networks, self.tiled.compute
        self._restorer = (
            None if conditioning is None else Restorer(self.tiled, noise, conditioning, windows)
        )

    @property
    def restorer(self) -> Restorer:
        if self._restorer is None:
            raise UserError(
                "this cascade was built without its compressor or VAE: it cannot restore"
            )
        return self._restorer

    @property
    def conditioning(self) -> Conditioning:
        return self.restorer.conditioning

    @property
    def compressor(self) -> Compressor:
        return self.networks.require("compressor")

    @property
    def previewer(self) -> PreviewDecoder:
        return self.networks.require("previewer")

    @property
    def vae(self) -> Autoencoder:
        return self.networks.require("vae")

    @property
    def refiner(self) -> VideoDiT:
        return self.networks.require("refiner")

    def with_conditioning(self, conditioning: Conditioning) -> "Cascade":
        """The same networks, of which the refiner is told otherwise what to restore."""
        other = copy(self)
        other._restorer = replace(self.restorer, conditioning=conditioning)
        return other

    def encode(self, video: Tensor) -> Tensor:
        """(B, 3, F, H, W) -> (B, C, F, h, w); sides are padded by reflection to multiples of 32.

        Raises UserError for frames too small to be padded.
        """
        return self.tiled.encode(video)

    def encode_vae(self, video: Tensor) -> Tensor:
        """(B, 3, F, H, W), sides multiples of 8 -> VAE latents (B, 4, F, H/8, W/8): the mean."""
        return self.tiled.encode_vae(video)

    def preview(self, latents: Tensor) -> Tensor:
        """(B, C, F, h, w) -> (B, 3, F, H', W'): what the compressor kept, without diffusion."""
        return self.tiled.preview(latents)

    def decode(
        self,
        latents: Tensor,
        *,
        steps: int | None = None,
        sampler: str | None = None,
        seed: int = 0,
        preview: Tensor | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """(B, C, F, h, w) -> (B, 3, F, 32h, 32w) in [-1, 1]: `restore`, then the VAE's decoder."""
        return self.decode_vae(
            self.restore(
                latents, steps=steps, sampler=sampler, seed=seed, preview=preview, on_step=on_step
            )
        )

    def reconstruct(
        self,
        video: Tensor,
        *,
        steps: int | None = None,
        sampler: str | None = None,
        seed: int = 0,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """(B, 3, F, H, W) -> the same shape: encode, decode, and cut the padding off."""
        height, width = video.shape[-2:]
        decoded = self.decode(
            self.encode(video), steps=steps, sampler=sampler, seed=seed, on_step=on_step
        )
        return decoded[..., :height, :width]

    def restore(
        self,
        latents: Tensor,
        *,
        steps: int | None = None,
        sampler: str | None = None,
        seed: int = 0,
        preview: Tensor | None = None,
        noise: Tensor | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Semantic latents (B, C, F, h, w) -> VAE latents (B, 4, F, 4h, 4w), by diffusion.

        noise: what to start from, in place of a draw from `seed`.
        """
        restored = self.restore_stream(
            [(latents, preview)],
            latents.shape[2],
            steps=steps,
            sampler=sampler,
            seed=seed,
            noise=noise,
            on_step=on_step,
        )
        return torch.cat(list(restored), dim=2)

    def restore_stream(
        self,
        pieces: Iterable[Piece],
        num_frames: int,
        *,
        steps: int | None = None,
        sampler: str | None = None,
        seed: int = 0,
        noise: Tensor | None = None,
        finished: Sequence[Tensor] = (),
        on_step: OnStep | None = None,
    ) -> Iterator[Tensor]:
        """`restore` of a clip of which not all is there at once, and to the same result.

        pieces: semantic latents and preview (or None) of any number of frames each, `num_frames` in
            all, asked for as they are needed.
        finished: the first results of a run that was broken off. They are given out again; what
            they share with later ones is computed again.
        -> VAE latents (B, 4, f, 4h, 4w), one after the other for `time_spans(num_frames).segments`.
        """
        sampling = self.sampling.changed(sampler, steps).of(self.restorer.noise)
        run = Run(sampling, seed, noise, finished, on_step)
        return self.restorer.stream(pieces, num_frames, run)

    def decode_vae(self, latents: Tensor) -> Tensor:
        """VAE latents (B, 4, F, 4h, 4w) -> (B, 3, F, 32h, 32w) in [-1, 1]."""
        return torch.cat(list(self.decode_vae_stream([latents], latents.shape[2])), dim=2)

    def decode_vae_stream(self, pieces: Iterable[Tensor], num_frames: int) -> Iterator[Tensor]:
        """`decode_vae` of latents that come in pieces of any number of frames."""
        return self.tiled.decode_vae(pieces, num_frames)

    def base(self, latents: Tensor, preview: Tensor | None = None) -> Tensor | None:
        """VAE latents of the preview (B, 4, F, 4h, 4w), where the refiner builds on them."""
        return self.restorer.base(latents, preview)

    def time_spans(self, num_frames: int) -> Spans:
        """The windows in which the refiner sees a clip; results come in their segments."""
        return self.windows.spans(num_frames)

    def check_size(self, height: int, width: int, steps: int | None = None) -> None:
        """Refuse frames of which what a stream holds whole does not fit, whatever the tiles."""
        in_flight = self.windows.frames_in_flight(steps or self.sampling.steps)
        self.tiled.check_size(height, width, in_flight)

    def spread(self) -> None:
        """Share windows and tiles out among the processes of torch.distributed, from now on."""
        self.tiled.spread()
