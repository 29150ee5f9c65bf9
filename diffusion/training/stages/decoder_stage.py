"""The stage that fits the VAE's decoder to the diffusion transformer in front of it."""

from collections.abc import Mapping, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.func import functional_call

from diffusion.config import resolve
from diffusion.data.training.batch import Batch
from diffusion.models.low_rank import LowRank, change, layers_of
from diffusion.training.draws import Draws
from diffusion.training.losses import PictureLoss, random_view
from diffusion.training.stages.autoencoder_stages import channels_last, flat
from diffusion.training.stages.frozen import FrozenNetworks
from diffusion.training.stages.stage import Batches, Stage
from diffusion.utils.errors import ConfigError
from diffusion.utils.ranges import Count, Weight


class DecoderStage(Stage):
    """A change of the VAE's decoder for latents that the cascade restored.

    A decoder that only knows encoded frames takes what the diffusion model left undecided for what
    was meant, and shows it soft. This one makes of restored latents what looks like the original,
    so that the VAE itself can be trained for pixels alone. The change is of low rank, a fraction of
    a second decoder, and the latents stay as they are, so that the refiner stays valid.

    rank: of the change.
    steps: of the sampler; a batch is restored with one of these numbers.
    picture_frames: of every clip, one after the other, that are decoded and judged. Frames of a
        clip are alike: fewer of more clips teach more in the same time.
    perceptual_weight, adversarial_weight: see PictureLoss; features are those of random views.
    init_from: file of a change to start from, of this rank or less.
    """

    more_networks = ("refiner",)

    def __init__(
        self,
        *,
        networks: FrozenNetworks,
        rank: Count = 16,
        steps: Sequence[Count] = (1, 4, 8),
        picture_frames: Count = 4,
        perceptual_weight: Weight = 1.0,
        adversarial_weight: Weight = 0.02,
        init_from: str | None = None,
    ):
        if not steps:
            raise ConfigError("steps is empty; give at least one number of them")
        vae = networks.fresh("vae").requires_grad_(False)
        layers = layers_of(vae.decoder, nn.Conv2d)
        super().__init__(decoder_change=LowRank.beside(vae.decoder, rank, layers))
        self.vae = vae
        self.picture_loss = PictureLoss(perceptual_weight, adversarial_weight)
        self.parts.update(self.picture_loss.trained())
        self.networks, self.steps, self.picture_frames = networks, tuple(steps), picture_frames
        self.init_from = init_from

    def prepare(self, batches: Batches) -> None:
        if self.init_from is not None:
            self.parts["decoder_change"].start_from(resolve(self.init_from))

    def loss(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        chosen = draws.window(batch.video.shape[2], self.picture_frames)
        latents = flat(self.restored(batch.video, draws)[:, :, chosen])  # (B * F, 4, h, w)
        frames = flat(batch.video[:, :, chosen])
        weights = self.parts["decoder_change"].changed(self.vae.decoder)
        decoded = functional_call(self.vae.decoder, weights, (channels_last(latents),))
        view = random_view(draws, *frames.shape[-2:])
        return self.picture_loss(decoded, channels_last(frames), self.parts, view)

    @torch.no_grad()
    def restored(self, video: Tensor, draws: Draws) -> Tensor:
        """(B, 3, F, H, W) -> VAE latents (B, 4, F, h, w), as the cascade draws them."""
        cascade = self.networks.pipeline(video.device, "refiner")
        (which,) = draws.shared_integers([len(self.steps) - 1])
        steps, seed = self.steps[which], draws.seed()
        return cascade.restore(cascade.encode(video), steps=steps, seed=seed)

    def reconstruct(self, parts: Mapping[str, nn.Module], video: Tensor) -> Tensor:
        """By the cascade, sampled as the config says."""
        vae = deepcopy(self.vae)
        change(vae.decoder, parts["decoder_change"])
        refiner = self.networks.get("refiner", video.device)
        cascade = self.networks.cascade({"vae": vae, "refiner": refiner}, video.device)
        return cascade.reconstruct(video)
