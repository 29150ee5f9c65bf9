"""The stages that train autoencoders: the VAE, and the compressor with its previewer."""

from collections.abc import Mapping

import torch
from einops import rearrange
from torch import Tensor, nn

from diffusion.config import resolve
from diffusion.data.training.batch import Batch
from diffusion.models.feature_distance import PerceptualDistance
from diffusion.models.weights import load_weights
from diffusion.pipelines.padding import pad_reflect
from diffusion.training.draws import Draws
from diffusion.training.losses import PictureLoss, PixelLoss, log_rmse
from diffusion.training.stages.stage import Batches, Stage
from diffusion.utils.ranges import Weight

FIT_BATCHES = 16  # beyond all steps, so that no step sees them again


class VAEStage(Stage):
    """The compact VAE: reconstruction from posterior samples, and latents of unit variance.

    adversarial_weight: of a discriminator's judgement. Pixel and perceptual losses alone leave the
        decoder soft, and no diffusion model can be sharper than the decoder behind it.
    train_encoder: False keeps the latents as they are, so that a refiner stays valid.
    pixel_loss: "charbonnier", or "log_rmse", which is the PSNR.
    init_from: file of VAE weights to start from, in place of principal components.
    """

    def __init__(
        self,
        *,
        vae: nn.Module,
        pixel_loss: PixelLoss = "charbonnier",
        perceptual_weight: Weight = 0.1,
        latent_weight: Weight = 5e-3,
        adversarial_weight: Weight = 0.0,
        train_encoder: bool = True,
        init_from: str | None = None,
    ):
        super().__init__(vae=vae)
        self.picture_loss = PictureLoss(perceptual_weight, adversarial_weight, pixel_loss)
        self.parts.update(self.picture_loss.trained())
        self.latent_weight, self.init_from = latent_weight, init_from
        vae.encoder.requires_grad_(train_encoder)

    def prepare(self, batches: Batches) -> None:
        vae = self.parts["vae"]
        if self.init_from is None:
            fit_linear(vae.encoder, vae.decoder, batches)
        else:
            load_weights(vae, resolve(self.init_from))

    def loss(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        vae = self.parts["vae"]
        frames = channels_last(flat(batch.video))
        mean = vae.encoder(frames)
        reconstruction = vae.decoder(mean + vae.posterior_std * draws.normal(mean))
        energy = {"latents": self.latent_weight * latent_energy(mean)}
        return self.picture_loss(reconstruction, frames, self.parts) | energy

    def reconstruct(self, parts: Mapping[str, nn.Module], video: Tensor) -> Tensor:
        return through(parts["vae"], parts["vae"], video)


class CompressorStage(Stage):
    """Compressor and previewer together: an autoencoder whose middle is the compressed video.

    Its loss is the preview's PSNR: the preview tends to the mean of what the latents allow, and the
    refiner adds the rest.

    train_compressor: False keeps the latents as they are.
    init_from: folder of weights of both to start from, in place of principal components.
    """

    def __init__(
        self,
        *,
        compressor: nn.Module,
        previewer: nn.Module,
        perceptual_weight: Weight = 0.0,
        latent_weight: Weight = 1e-2,
        train_compressor: bool = True,
        init_from: str | None = None,
    ):
        super().__init__(compressor=compressor, previewer=previewer)
        compressor.requires_grad_(train_compressor)
        self.init_from = init_from
        self.perceptual = PerceptualDistance() if perceptual_weight else None
        self.perceptual_weight, self.latent_weight = perceptual_weight, latent_weight

    def prepare(self, batches: Batches) -> None:
        if self.init_from is None:
            fit_linear(self.parts["compressor"].encoder, self.parts["previewer"].decoder, batches)
            return
        for name, part in self.parts.items():
            load_weights(part, resolve(self.init_from) / f"{name}.safetensors")

    def loss(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        frames = channels_last(flat(batch.video))
        latents = self.parts["compressor"].encoder(frames)
        preview = self.parts["previewer"].decoder(latents)
        terms = {
            "pixels": log_rmse(preview.float(), frames),
            "latents": self.latent_weight * latent_energy(latents),
        }
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual_weight * self.perceptual(preview, frames).mean()
        return terms

    def reconstruct(self, parts: Mapping[str, nn.Module], video: Tensor) -> Tensor:
        return through(parts["compressor"], parts["previewer"], video)


def flat(video: Tensor) -> Tensor:
    """(B, C, F, H, W) -> (B*F, C, H, W)."""
    return rearrange(video, "b c f h w -> (b f) c h w")


def channels_last(frames: Tensor) -> Tensor:
    """(N, C, H, W) as convolutions on a CPU are fastest with."""
    return frames.contiguous(memory_format=torch.channels_last)


def fit_linear(encoder: nn.Module, decoder: nn.Module, batches: Batches) -> None:
    """Both shortcuts get the principal components of pixel blocks of some batches."""
    encoder.linear.fit([flat(batches(2**32 + i).video) for i in range(FIT_BATCHES)])
    decoder.linear.load_state_dict(encoder.linear.state_dict())


def latent_energy(latents: Tensor) -> Tensor:
    """Half the mean square: the KL divergence to N(0, 1) at a fixed width, without its constant."""
    return 0.5 * latents.float().square().mean()


def through(encoder: nn.Module, decoder: nn.Module, video: Tensor) -> Tensor:
    """(B, 3, F, H, W) in [-1, 1] -> the same, encoded and decoded; any size."""
    height, width = video.shape[-2:]
    padded = pad_reflect(video, encoder.spatial_compression)
    return decoder.decode(encoder.encode(padded))[..., :height, :width].clamp(-1, 1)
