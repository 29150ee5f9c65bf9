"""The stages that judge what the diffusion transformer restores as pictures."""

from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.func import functional_call

from diffusion.config import resolve
from diffusion.data.training.batch import Batch, LatentBatch
from diffusion.models.low_rank import LowRank, change, layers_of
from diffusion.models.weights import load_weights
from diffusion.noise.gaussian import GaussianDiffusion
from diffusion.pipelines.conditioning import Conditioning
from diffusion.training.draws import Draws
from diffusion.training.losses import PictureLoss
from diffusion.training.stages.autoencoder_stages import flat
from diffusion.training.stages.frozen import FrozenNetworks
from diffusion.training.stages.refiner_stage import RefinerStage
from diffusion.utils.errors import ConfigError
from diffusion.utils.ranges import Count, Natural, Weight


class PictureStage(RefinerStage):
    """The diffusion loss, and that of the frames which the predicted x0 decodes to.

    The mean squared error of latents counts alike what is seen and what is not; a loss behind the
    decoder counts what is seen (Berrada et al. 2024, arXiv:2411.04873, with features of the
    decoder; here an ImageNet network's, and a discriminator's judgement, on the frames).

    diffusion_weight: of RefinerStage's loss.
    picture_frames: of every clip, one after the other, that are decoded and judged, which is what
        takes the time.
    Other arguments are RefinerStage's and VAEStage's.
    """

    def __init__(
        self,
        *,
        refiner: nn.Module,
        noise: GaussianDiffusion,
        conditioning: Conditioning,
        networks: FrozenNetworks,
        diffusion_weight: Weight = 0.3,
        perceptual_weight: Weight = 1.0,
        adversarial_weight: Weight = 0.03,
        picture_frames: Count = 4,
        position_range: tuple[Natural, Natural, Natural] = (0, 0, 0),
        init_from: str | None = None,
    ):
        super().__init__(
            refiner=refiner,
            noise=noise,
            conditioning=conditioning,
            networks=networks,
            position_range=position_range,
            init_from=init_from,
        )
        self.picture_loss = PictureLoss(perceptual_weight, adversarial_weight)
        self.parts.update(self.picture_loss.trained())
        self.diffusion_weight, self.picture_frames = diffusion_weight, picture_frames

    def loss(self, batch: Batch | LatentBatch, draws: Draws) -> dict[str, Tensor]:
        if isinstance(batch, LatentBatch):
            raise ConfigError(f"{type(self).__name__} compares frames, so its data must be videos")
        latents = self.encode(batch, draws)
        x0 = self.conditioning.to_x0(latents.target, latents.base)  # (B, 4, F, h, w)
        condition = self.conditioning.join(latents.semantic, latents.base)
        t, noise = self.times(draws), draws.normal(x0)
        x_t = self.noise.add_noise(x0, noise, t)
        origin = draws.shared_integers(self.position_range)
        prediction = self.predict(x_t, t, condition, origin)
        terms = self.picture_terms(prediction, x_t, t, latents.base, batch.video, draws)
        if self.diffusion_weight:
            loss = self.noise.training_loss(prediction, x0, noise, t).loss.mean()
            terms["loss_diffusion"] = self.diffusion_weight * loss
        return terms

    def times(self, draws: Draws) -> Tensor:
        """-> (B,) timesteps."""
        return self.noise.times(draws.uniform())

    def predict(self, x_t: Tensor, t: Tensor, condition: Tensor, origin: tuple[int, ...]) -> Tensor:
        return self.parts["refiner"](x_t, t, condition, origin=origin)

    def picture_terms(
        self,
        prediction: Tensor,
        x_t: Tensor,
        t: Tensor,
        base: Tensor | None,
        video: Tensor,
        draws: Draws,
    ) -> dict[str, Tensor]:
        """The frames that the predicted x0 stands for, against those of `video`."""
        mean = self.noise.without_variance(prediction).float()
        x0 = self.noise.predicted_x0(mean, x_t, t)
        latents = self.conditioning.from_x0(x0, base)
        chosen = draws.window(video.shape[2], self.picture_frames)
        decoded = self.network("vae", video).decode(latents[:, :, chosen])
        return self.picture_loss(flat(decoded), flat(video[:, :, chosen]), self.parts)


class OneStepStage(PictureStage):
    """A student of one step, from noise to x0, judged as pictures.

    Adversarial post-training (Lin et al. 2025, arXiv:2501.08316): the student starts as the
    diffusion model and learns from real videos and a discriminator in place of its teacher. Since
    it is given what it restores, it has pixels and features to meet as well. It is a low-rank
    change of the teacher, so that both fit where one did.

    teacher: weights file of the diffusion model.
    rank: of the change.
    Other arguments are PictureStage's.
    """

    def __init__(
        self,
        *,
        refiner: nn.Module,
        noise: GaussianDiffusion,
        conditioning: Conditioning,
        networks: FrozenNetworks,
        teacher: str,
        rank: Count = 16,
        perceptual_weight: Weight = 1.0,
        adversarial_weight: Weight = 0.03,
        picture_frames: Count = 4,
        position_range: tuple[Natural, Natural, Natural] = (0, 0, 0),
    ):
        if noise.is_flow:
            raise ConfigError("OneStepStage starts at a timestep, which a flow does not have")
        networks.check_sampling(steps=1)
        super().__init__(
            refiner=refiner,
            noise=noise,
            conditioning=conditioning,
            networks=networks,
            diffusion_weight=0.0,
            perceptual_weight=perceptual_weight,
            adversarial_weight=adversarial_weight,
            picture_frames=picture_frames,
            position_range=position_range,
        )
        load_weights(refiner, resolve(teacher))
        self.refiner = self.parts.pop("refiner").requires_grad_(False)
        self.parts["refiner_change"] = LowRank.beside(refiner, rank, layers_of(refiner, nn.Linear))

    def times(self, draws: Draws) -> Tensor:
        """The sampler's first: nothing but noise."""
        return torch.full_like(draws.uniform(), self.noise.num_train_timesteps - 1).long()

    def predict(self, x_t: Tensor, t: Tensor, condition: Tensor, origin: tuple[int, ...]) -> Tensor:
        weights = self.parts["refiner_change"].changed(self.refiner)
        return functional_call(self.refiner, weights, (x_t, t, condition), {"origin": origin})

    def reconstruct(self, parts: Mapping[str, nn.Module], video: Tensor) -> Tensor:
        refiner = deepcopy(self.refiner)
        change(refiner, parts["refiner_change"])
        return self.networks.cascade({"refiner": refiner}, video.device).reconstruct(video)
