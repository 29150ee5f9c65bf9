"""What a stage trains: each gives the trainer its networks and the loss of one batch."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from diffusion.data.clips import Batch
from diffusion.data.latent_cache import LatentBatch
from diffusion.noise.gaussian import GaussianDiffusion
from diffusion.pipelines.conditioning import Conditioning
from diffusion.training.losses import PerceptualDistance, charbonnier

Batches = Callable[[int], Any]
"""step -> Batch or LatentBatch, a function of nothing else."""

FIT_BATCHES = 16  # beyond all steps, so that no step sees them again


class Stage(nn.Module):
    """parts: the trained networks, by the name under which `weights` of the config has them.

    Other modules of a stage, such as a loss, follow it to a device and stay as they are.
    """

    def __init__(self, **parts: nn.Module):
        super().__init__()
        self.parts = nn.ModuleDict(parts)

    def prepare(self, batches: Batches) -> None:
        """Called once before the first step of a run from scratch."""

    def loss(self, batch: Batch | LatentBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """Terms of the loss, already weighted: their sum is minimised."""
        raise NotImplementedError


def flat(video: Tensor) -> Tensor:
    """(B, C, F, H, W) -> (B*F, C, H, W)."""
    return rearrange(video, "b c f h w -> (b f) c h w")


class VAEStage(Stage):
    """The compact VAE: reconstruction from posterior samples, and latents of unit variance."""

    def __init__(
        self, *, vae: nn.Module, perceptual_weight: float = 0.1, latent_weight: float = 5e-3
    ):
        super().__init__(vae=vae)
        self.perceptual = PerceptualDistance() if perceptual_weight else None
        self.perceptual_weight, self.latent_weight = perceptual_weight, latent_weight

    def prepare(self, batches: Batches) -> None:
        fit_linear(self.parts["vae"].encoder, self.parts["vae"].decoder, batches)

    def loss(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        vae = self.parts["vae"]
        frames = flat(batch.video).contiguous(memory_format=torch.channels_last)
        mean = vae.encoder(frames)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        reconstruction = vae.decoder(mean + vae.posterior_std * noise)
        return reconstruction_loss(
            reconstruction,
            frames,
            mean,
            self.perceptual,
            self.perceptual_weight,
            self.latent_weight,
        )


class CompressorStage(Stage):
    """Compressor and previewer together: an autoencoder whose middle is the compressed video.

    epsilon: of the pixel loss. Large, so that the preview tends to the mean of what the latents
        allow rather than to its median: the refiner adds the rest.
    """

    def __init__(
        self,
        *,
        compressor: nn.Module,
        previewer: nn.Module,
        perceptual_weight: float = 0.0,
        latent_weight: float = 1e-3,
        epsilon: float = 0.1,
    ):
        super().__init__(compressor=compressor, previewer=previewer)
        self.epsilon = epsilon
        self.perceptual = PerceptualDistance() if perceptual_weight else None
        self.perceptual_weight, self.latent_weight = perceptual_weight, latent_weight

    def prepare(self, batches: Batches) -> None:
        fit_linear(self.parts["compressor"].encoder, self.parts["previewer"].decoder, batches)

    def loss(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        frames = flat(batch.video).contiguous(memory_format=torch.channels_last)
        latents = self.parts["compressor"].encoder(frames)
        preview = self.parts["previewer"].decoder(latents)
        return reconstruction_loss(
            preview,
            frames,
            latents,
            self.perceptual,
            self.perceptual_weight,
            self.latent_weight,
            self.epsilon,
        )


class RefinerStage(Stage):
    """The diffusion transformer on encoded clips, with one timestep per clip.

    image_share: share of the steps whose frames are treated as unrelated images (joint training).
    position_range: the first token's frame, row and column are drawn below these, so that
        positions which no crop reaches are known all the same.
    """

    def __init__(
        self,
        *,
        refiner: nn.Module,
        noise: GaussianDiffusion,
        conditioning: Conditioning,
        image_share: float = 0.1,
        position_range: Sequence[int] = (0, 0, 0),
    ):
        super().__init__(refiner=refiner)
        self.noise, self.conditioning = noise, conditioning
        self.image_share, self.position_range = image_share, position_range

    def loss(self, batch: LatentBatch, generator: torch.Generator) -> dict[str, Tensor]:
        condition = self.conditioning.join(batch.semantic, batch.base)
        x0 = self.conditioning.to_x0(batch.target, batch.base)  # (B, 4, F, h, w)
        t = self.noise.sample_times(len(x0), x0.device, generator)
        noise = torch.randn(x0.shape, generator=generator, device=x0.device)
        x_t = self.noise.add_noise(x0, noise, t)
        as_images = torch.rand((), generator=generator, device=x0.device) < self.image_share
        origin = tuple(
            int(torch.randint(0, end + 1, (), generator=generator, device=x0.device))
            for end in self.position_range
        )
        prediction = self.parts["refiner"](
            x_t, t, condition, image_mode=bool(as_images), origin=origin
        )
        terms = self.noise.training_loss(prediction, x0, noise, t)
        return {"loss_diffusion": terms.loss.mean()}


def fit_linear(encoder: nn.Module, decoder: nn.Module, batches: Batches) -> None:
    """Both shortcuts get the principal components of pixel blocks of some batches."""
    encoder.linear.fit(torch.cat([flat(batches(2**32 + i).video) for i in range(FIT_BATCHES)]))
    decoder.linear.load_state_dict(encoder.linear.state_dict())


def reconstruction_loss(
    reconstruction: Tensor,
    frames: Tensor,
    latents: Tensor,
    perceptual: PerceptualDistance | None,
    perceptual_weight: float,
    latent_weight: float,
    epsilon: float = 1e-2,
) -> dict[str, Tensor]:
    """Pixels, features, and half the latents' mean square (the KL to N(0, 1) at fixed width)."""
    terms = {
        "pixels": charbonnier(reconstruction.float() - frames, epsilon),
        "latents": latent_weight * 0.5 * latents.float().square().mean(),
    }
    if perceptual is not None:
        terms["perceptual"] = perceptual_weight * perceptual(reconstruction, frames).mean()
    return terms
