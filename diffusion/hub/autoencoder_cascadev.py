"""The cascade as one of diffusers' video autoencoders, for the training scripts of others."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import (
    AutoencoderMixin,
    DecoderOutput,
    DiagonalGaussianDistribution,
)
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor

from diffusion.config import load_config
from diffusion.models.network import Network
from diffusion.noise.samplers import draw_seed
from diffusion.pipelines.cascade import Cascade
from diffusion.pipelines.cascade_builder import (
    PARTS,
    assemble,
    build_part,
    check_config,
    load_parts,
    model_of,
)
from diffusion.pipelines.padding import round_up
from diffusion.pipelines.restore import Run
from diffusion.utils.errors import ConfigError

TILE = 256
"""Pixels of a tile's side, unless told otherwise."""


class AutoencoderCascadeV(AutoencoderMixin, Network):
    """Pixels (B, 3, F, H, W) in [-1, 1] <-> semantic latents (B, 16, F, H/32, W/32).

    The encoder is deterministic: `latent_dist` is a Gaussian of no width. The decoder samples: the
    refiner restores VAE latents in some steps of diffusion, which the VAE decodes. Any H, W and F:
    sides are padded by reflection to multiples of 32, long clips go through overlapping windows.

    Gradients are recorded where they are on and needed: in train mode, and in eval mode for inputs
    that require them. Through the decoder they go back through every step of its sampler.

    enable_slicing: one video of a batch at a time. enable_tiling: tiles of `tile_size` pixels at
    most; without it, whole frames, or the largest tiles that fit into memory.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        *,
        cascade: Mapping[str, Any],
        scaling_factor: float = 1.0,
        latent_channels: int = 16,
    ):
        """cascade: what a config says of the model, see `model_of`.

        scaling_factor: for models that generate these latents, as in other autoencoders' configs;
            `encode` and `decode` do not apply it.
        """
        super().__init__()
        check_config(cascade)
        self.compressor, self.previewer, self.vae, self.refiner = (
            build_part(cascade, name) for name in PARTS
        )
        if self.compressor.latent_channels != latent_channels:
            raise ConfigError(
                f"latent_channels={latent_channels}, but this compressor makes "
                f"{self.compressor.latent_channels}"
            )
        self.use_tiling = self.use_slicing = False
        self.tile_size = TILE

    @classmethod
    def from_cascade(
        cls, config: str | Path | Mapping[str, Any], weights: str | Path | None = None
    ) -> "AutoencoderCascadeV":
        """Of a saved cascade's folder, or a config, with its weights. weights: see `weights_of`.

        Example:
            vae = AutoencoderCascadeV.from_cascade("pretrained/compact")
            latents = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
        """
        if not isinstance(config, Mapping):
            config = load_config(config)
        parts = load_parts(config, PARTS, weights, changed=True)
        channels = parts["compressor"].latent_channels
        autoencoder = cls(cascade=model_of(config), latent_channels=channels)
        for name in PARTS:
            setattr(autoencoder, name, parts[name])
        return autoencoder.eval()

    @property
    def spatial_compression_ratio(self) -> int:
        return self.compressor.spatial_compression

    @property
    def temporal_compression_ratio(self) -> int:
        return self.compressor.temporal_compression

    def enable_tiling(self, tile_size: int = TILE) -> None:
        """tile_size: in pixels; what the refiner's attention needs may make it larger."""
        super().enable_tiling()
        self.tile_size = tile_size

    @apply_forward_hook
    def encode(
        self, x: Tensor, return_dict: bool = True
    ) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """(B, 3, F, H, W) in [-1, 1] -> `.latent_dist` of (B, C, F, H/32, W/32)."""
        with self._gradients(x):
            cascade = self._cascade()
            latents = torch.cat([cascade.encode(part) for _, part in self._slices(x)])
        latents = latents.to(self.dtype)
        moments = torch.cat([latents, torch.zeros_like(latents)], dim=1)
        posterior = DiagonalGaussianDistribution(moments, deterministic=True)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    @apply_forward_hook
    def decode(
        self,
        z: Tensor,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
        num_inference_steps: int | None = None,
    ) -> DecoderOutput | tuple[Tensor]:
        """(B, C, F, h, w) -> `.sample` (B, 3, F, 32h, 32w) in [-1, 1].

        generator: of the sampler's noise. Without one it is the same noise every time.
        num_inference_steps: of the sampler; by default what the model is meant for.
        """
        seed = draw_seed(generator)
        with self._gradients(z):
            cascade = self._cascade()
            sampling = cascade.sampling.changed(steps=num_inference_steps)
            decoded = []
            for first, part in self._slices(z):
                run = Run(sampling, seed, first_video=first)
                restored = cascade.restorer.stream([(part, None)], part.shape[2], run)
                decoded.append(cascade.decode_vae(torch.cat(list(restored), dim=2)))
        sample = torch.cat(decoded).to(self.dtype)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def forward(
        self,
        sample: Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> DecoderOutput | tuple[Tensor]:
        """(B, 3, F, H, W) in [-1, 1] -> the same shape: encode, decode, and cut the padding off."""
        height, width = sample.shape[-2:]
        posterior = self.encode(sample).latent_dist
        z = posterior.sample(generator) if sample_posterior else posterior.mode()
        decoded = self.decode(z, generator=generator).sample[..., :height, :width]
        return DecoderOutput(sample=decoded) if return_dict else (decoded,)

    def _slices(self, x: Tensor) -> list[tuple[int, Tensor]]:
        """Number of the first video, and videos: each by itself, or all together."""
        length = 1 if self.use_slicing else len(x)
        return [(i * length, part) for i, part in enumerate(x.split(length))]

    def _gradients(self, x: Tensor) -> torch.set_grad_enabled:
        wanted = self.training or x.requires_grad
        return torch.set_grad_enabled(torch.is_grad_enabled() and wanted)

    def _cascade(self) -> Cascade:
        """Of these networks as they are now."""
        config = dict(self.config["cascade"])
        if self.use_tiling:
            step = self.vae.spatial_compression
            tile = round_up(self.tile_size // step, self.refiner.size_multiple[1])
            cut = {"tile": tile, "tile_overlap": None, "vae_tile": max(2, self.tile_size // step)}
            config["cascade"] = {**config.get("cascade", {}), **cut}
        parts = {name: getattr(self, name) for name in PARTS}
        return assemble(config, parts, device=self.device, dtype=self.dtype, live=True)
