"""The Gaussian window that SSIM and optical flow average in."""

import torch
import torch.nn.functional as nnf
from torch import Tensor


def gaussian_blur(x: Tensor, sigma: float, radius: int, mode: str) -> Tensor:
    """(N, C, H, W) -> its weighted means in a square window of 2 * radius + 1 pixels.

    mode: how edges are continued, see torch's `pad`.
    """
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = torch.exp(-(offsets**2) / (2 * sigma**2))
    weights = (weights / weights.sum()).tolist()
    x = nnf.pad(x, (radius,) * 4, mode=mode)
    for axis in (-1, -2):
        # Shifted sums: on a CPU some ten times as fast as a convolution with one channel.
        length = x.shape[axis] - 2 * radius
        mean = weights[0] * x.narrow(axis, 0, length)
        for i, weight in enumerate(weights[1:], start=1):
            mean.add_(x.narrow(axis, i, length), alpha=weight)
        x = mean
    return x
