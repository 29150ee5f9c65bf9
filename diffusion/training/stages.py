"""What a stage trains: each gives the trainer its networks and the loss of one batch."""

from typing import Protocol

import torch
from einops import rearrange
from torch import Tensor, nn

from diffusion.data.clips import Batch
from diffusion.training.losses import PerceptualDistance, charbonnier


class Stage(Protocol):
    """`parts` are the trained networks by the name under which `weights` of the config has them."""

    parts: nn.ModuleDict

    def prepare(self, batch: Batch) -> None:
        """Called once before the first step of a run from scratch."""

    def loss(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Terms of the loss, already weighted: their sum is minimised."""


def flat(video: Tensor) -> Tensor:
    """(B, C, F, H, W) -> (B*F, C, H, W)."""
    return rearrange(video, "b c f h w -> (b f) c h w")


class VAEStage:
    """The compact VAE: reconstruction from posterior samples, and latents of unit variance."""

    def __init__(
        self, *, vae: nn.Module, perceptual_weight: float = 0.1, latent_weight: float = 5e-3
    ):
        self.parts = nn.ModuleDict({"vae": vae})
        self.perceptual = PerceptualDistance().to(memory_format=torch.channels_last)
        self.perceptual_weight, self.latent_weight = perceptual_weight, latent_weight

    def prepare(self, batch: Batch) -> None:
        fit_linear(self.parts["vae"].encoder, self.parts["vae"].decoder, batch)

    def loss(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        vae = self.parts["vae"]
        frames = flat(batch.video).contiguous(memory_format=torch.channels_last)
        mean = vae.encoder(frames)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        reconstruction = vae.decoder(mean + vae.posterior_std * noise)
        return reconstruction_loss(
            reconstruction, frames, mean, self.perceptual, self.perceptual_weight, self.latent_weight
        )


class CompressorStage:
    """Compressor and previewer together: an autoencoder whose middle is the compressed video."""

    def __init__(
        self,
        *,
        compressor: nn.Module,
        previewer: nn.Module,
        perceptual_weight: float = 0.0,
        latent_weight: float = 1e-3,
    ):
        self.parts = nn.ModuleDict({"compressor": compressor, "previewer": previewer})
        self.perceptual = PerceptualDistance() if perceptual_weight else None
        self.perceptual_weight, self.latent_weight = perceptual_weight, latent_weight

    def prepare(self, batch: Batch) -> None:
        fit_linear(self.parts["compressor"].encoder, self.parts["previewer"].decoder, batch)

    def loss(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        frames = flat(batch.video).contiguous(memory_format=torch.channels_last)
        latents = self.parts["compressor"].encoder(frames)
        preview = self.parts["previewer"].decoder(latents)
        return reconstruction_loss(
            preview, frames, latents, self.perceptual, self.perceptual_weight, self.latent_weight
        )


def fit_linear(encoder: nn.Module, decoder: nn.Module, batch: Batch) -> None:
    """Both shortcuts get the principal components of the batch's pixel blocks."""
    encoder.linear.fit(flat(batch.video))
    decoder.linear.load_state_dict(encoder.linear.state_dict())


def reconstruction_loss(
    reconstruction: Tensor,
    frames: Tensor,
    latents: Tensor,
    perceptual: PerceptualDistance | None,
    perceptual_weight: float,
    latent_weight: float,
) -> dict[str, Tensor]:
    """Pixels, features, and half the mean square of the latents (the KL to N(0, 1) at fixed width)."""
    terms = {
        "pixels": charbonnier(reconstruction.float() - frames),
        "latents": latent_weight * 0.5 * latents.float().square().mean(),
    }
    if perceptual is not None:
        terms["perceptual"] = perceptual_weight * perceptual(reconstruction, frames).mean()
    return terms
