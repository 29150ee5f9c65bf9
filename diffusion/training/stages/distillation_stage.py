"""The stage that teaches the diffusion transformer to take fewer steps."""

from copy import deepcopy

import torch
from torch import Tensor, nn

from diffusion.config import resolve
from diffusion.models.weights import load_weights
from diffusion.noise.gaussian import GaussianDiffusion
from diffusion.pipelines.conditioning import Conditioning
from diffusion.training.stages.frozen import FrozenNetworks
from diffusion.training.stages.refiner_stage import RefinerStage, See
from diffusion.utils.errors import ConfigError
from diffusion.utils.ranges import Count, Natural, Share


class DistillationStage(RefinerStage):
    """Progressive distillation: one DDIM step of the student is two of its teacher.

    Salimans & Ho 2022 (arXiv:2202.00512), algorithm 2. Distil 8 steps to 4, these to 2, these to 1,
    each from the weights of the one before; sample the student with `ddim` and its steps.

    steps: of the student; the teacher is good at twice as many.
    teacher: weights file, of which the student starts as a copy.
    Other arguments are RefinerStage's.
    """

    def __init__(
        self,
        *,
        refiner: nn.Module,
        noise: GaussianDiffusion,
        conditioning: Conditioning,
        steps: Count,
        teacher: str,
        networks: FrozenNetworks | None = None,
        image_share: Share = 0.1,
        position_range: tuple[Natural, Natural, Natural] = (0, 0, 0),
        latent_crop: Count | None = None,
    ):
        super().__init__(
            refiner=refiner,
            noise=noise,
            conditioning=conditioning,
            networks=networks,
            image_share=image_share,
            position_range=position_range,
            latent_crop=latent_crop,
        )
        if not 1 <= steps <= noise.num_train_timesteps // 2:
            raise ConfigError(
                f"train.stage.steps={steps} is not in 1..{noise.num_train_timesteps // 2}"
            )
        if networks is not None:
            networks.check_sampling(steps, "ddim")
        self.steps = steps
        load_weights(refiner, resolve(teacher))
        self.teacher = deepcopy(refiner).requires_grad_(False)

    def loss_of(self, x0: Tensor, noise: Tensor, quantiles: Tensor, see: See) -> Tensor:
        end = (quantiles * self.steps).long()  # 0 is the student's last step
        t, halfway, s = (self.time(2 * end + half) for half in (2, 1, 0))
        x_t = self.noise.add_noise(x0, noise, t)
        with torch.no_grad():
            x_half = self.noise.ddim_step(see(self.teacher, x_t, t), x_t, t, halfway)
            x_s = self.noise.ddim_step(see(self.teacher, x_half, halfway), x_half, halfway, s)
            x0 = self.noise.x0_between(x_t, x_s, t, s)
            alpha, sigma = self.noise.marginal(t)
            noise = (x_t - alpha * x0) / sigma  # of which x_t is made when that is its x0
        prediction = see(self.parts["refiner"], x_t, t)
        return self.noise.training_loss(prediction, x0, noise, t, x_t).loss.mean()

    def time(self, step: Tensor) -> Tensor:
        """Steps of the teacher until the clean end -> timesteps, as `ddim` spaces them."""
        times = step * self.noise.num_train_timesteps / (2 * self.steps)
        return times if self.noise.is_flow else times.round().long() - 1
