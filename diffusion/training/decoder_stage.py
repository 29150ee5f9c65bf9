"""The stage that fits the VAE's decoder to the diffusion transformer in front of it."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from diffusion.data.clips import Batch
from diffusion.training.autoencoder_stages import VAEStage, flat
from diffusion.training.draws import Draws
from diffusion.training.frozen import FrozenNetworks


class DecoderStage(VAEStage):
    """The VAE's decoder on latents that the cascade restored, next to those of its own encoder.

    A decoder that only knows encoded frames takes what the diffusion model leaves undecided for
    what was meant. This one sees both: it keeps decoding the encoder's latents, and makes of
    restored ones what looks like the original. The latents stay as they are, so that the
    refiner stays valid.

    steps: of the sampler; a batch is restored with one of these numbers.
    refined_share: share of the batches that are restored; the others are encoded.
    Other arguments are VAEStage's.
    """

    def __init__(
        self,
        *,
        vae: nn.Module,
        networks: FrozenNetworks,
        steps: Sequence[int] = (4, 8),
        refined_share: float = 0.75,
        perceptual_weight: float = 0.1,
        adversarial_weight: float = 0.0,
        init_from: str | None = None,
    ):
        super().__init__(
            vae=vae,
            perceptual_weight=perceptual_weight,
            adversarial_weight=adversarial_weight,
            train_encoder=False,
            init_from=init_from,
        )
        self.networks = networks
        self.steps, self.refined_share = tuple(steps), refined_share

    def loss(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        frames = flat(batch.video).contiguous(memory_format=torch.channels_last)
        latents = flat(self.latents(batch.video, draws))  # (B * F, 4, h, w)
        decoded = self.parts["vae"].decoder(latents.contiguous(memory_format=torch.channels_last))
        return self.judge(decoded, frames)

    @torch.no_grad()
    def latents(self, video: Tensor, draws: Draws) -> Tensor:
        """(B, 3, F, H, W) -> its VAE latents (B, 4, F, h, w), restored or encoded."""
        if draws.shared_uniform() >= self.refined_share:
            mean, std = self.parts["vae"].posterior(video)
            return mean + std * draws.normal(mean)
        cascade = self.networks.pipeline(video.device, "refiner")
        (which,) = draws.shared_integers([len(self.steps) - 1])
        seed = int(2**31 * draws.uniform()[0])  # another one in every process
        return cascade.restore(cascade.encode(video), steps=self.steps[which], seed=seed)

    def reconstruct(self, parts: Mapping[str, nn.Module], video: Tensor) -> Tensor:
        """By the cascade, with its usual number of steps."""
        refiner = self.networks.get("refiner", video.device)
        return self.networks.cascade({**parts, "refiner": refiner}, video.device).reconstruct(video)
