"""The loop that the pipeline spreads over the pieces of a clip, here over a whole one."""

from collections.abc import Callable

import torch
from diffusers import SchedulerMixin
from torch import Tensor

from diffusion.noise.samplers import Trajectory


def denoise(
    predict: Callable[[Tensor, Tensor], Tensor],
    sampler: SchedulerMixin,
    noise: Tensor,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Noise of unit variance (N, ...) -> data; `predict` gets x_t and the timestep (N,)."""
    trajectory = Trajectory(sampler, noise, generator)
    for _ in sampler.timesteps:
        timestep = trajectory.timestep.expand(len(noise))
        trajectory.step(predict(trajectory.model_input(), timestep))
    return trajectory.x
