"""What the video autoencoders have in common."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from diffusion.models.network import Network

if TYPE_CHECKING:
    from diffusers.models.autoencoders.vae import DecoderOutput


class Autoencoder(Network):
    """Video <-> the latents that the diffusion transformer restores; called, it does both.

    Latents that go in and out are model-ready: shifted by `shift_factor`, then scaled.
    decode_chunk, decode_overlap: frames that are decoded together, and shared by neighbours.
    """

    encoder: nn.Module
    decoder: nn.Module
    latent_channels: int
    spatial_compression: int
    temporal_compression: int
    scaling_factor: float
    shift_factor: float
    decode_chunk: int
    decode_overlap: int

    def posterior(self, video: Tensor) -> tuple[Tensor, Tensor | float]:
        """(B, 3, F, H, W) in [-1, 1] -> mean and width of unscaled latents (B, C, F, H/s, W/s)."""
        raise NotImplementedError

    def encode(
        self,
        video: Tensor,
        sample_posterior: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """(B, 3, F, H, W) in [-1, 1] -> (B, C, F, H/s, W/s): the posterior's mean, or a sample."""
        raise NotImplementedError

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, F, h, w) -> (B, 3, F, h*s, w*s), about [-1, 1], not clamped."""
        raise NotImplementedError

    def forward(
        self,
        sample: Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> "DecoderOutput | tuple[Tensor]":
        """(B, 3, F, H, W) in [-1, 1] -> the same shape, as `.sample`, or alone in a tuple."""
        decoded = self.decode(self.encode(sample, sample_posterior, generator))
        if not return_dict:
            return (decoded,)
        from diffusers.models.autoencoders.vae import DecoderOutput  # slow: all of its autoencoders

        return DecoderOutput(sample=decoded)
