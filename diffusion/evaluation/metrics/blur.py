"""The Gaussian window that SSIM and optical flow average in."""

from functools import cache

import torch
from torch import Tensor


def gaussian_blur(x: Tensor, sigma: float, radius: int) -> Tensor:
    """(..., H + 2 * radius, W + 2 * radius) -> (..., H, W): means weighted by the window."""
    weights = window(sigma, radius)
    for axis in (-2, -1):
        # Shifted sums: on a CPU some ten times as fast as a convolution with one channel, and on
        # a GPU in float32 whatever is allowed for convolutions.
        length = x.shape[axis] - 2 * radius
        mean = weights[0] * x.narrow(axis, 0, length)
        for i, weight in enumerate(weights[1:], start=1):
            mean.add_(x.narrow(axis, i, length), alpha=weight)
        x = mean
    return x


@cache
def window(sigma: float, radius: int) -> tuple[float, ...]:
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = torch.exp(-(offsets**2) / (2 * sigma**2))
    return tuple((weights / weights.sum()).tolist())
