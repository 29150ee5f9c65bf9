"""What the video autoencoders have in common."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffusion.models.network import Network

if TYPE_CHECKING:
    from diffusers.models.autoencoders.vae import DecoderOutput


class Autoencoder(Network):
    """Has `encode`, to model-ready latents, and `decode`; called, it does both."""

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
