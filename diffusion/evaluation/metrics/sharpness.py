"""How much detail there is, whether or not it is the right one."""

import torch
from torch import Tensor

from diffusion.evaluation.metrics.metric import Metric

GRADIENT_FLOOR = (1 / 127.5) ** 2  # a level squared: keeps ratios finite where nothing is seen


def gradient(video: Tensor, reference: Tensor) -> Tensor:
    """Energy of the differences of neighbouring pixels, relative to the original's: -> (F,).

    1 is right; less is blur, more is noise or ringing.
    """

    def energy(x: Tensor) -> Tensor:
        frames = x.float().unbind(1)
        squares = [f.diff(dim=-1).square().mean() + f.diff(dim=-2).square().mean() for f in frames]
        return torch.stack(squares) + GRADIENT_FLOOR

    return energy(video) / energy(reference)


GRADIENT = Metric(
    name="gradient",
    label="Gradient",
    higher_is_better=None,
    definition="energy of differences of neighbouring pixels / the original's; 1 is right",
    compute=gradient,
    least_side=2,
)
