"""Structural similarity, at one scale and at five."""

import torch
import torch.nn.functional as nnf
from einops import rearrange
from torch import Tensor

from diffusion.evaluation.metrics.blur import gaussian_blur

RADIUS = 5  # pixels: a window of 11
SIGMA = 1.5
C1, C2 = 0.01**2, 0.03**2  # of values in [0, 1]
EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the five scales, finest first
MS_SSIM_LEAST_SIDE = (2 * RADIUS + 1) * 2 ** (len(EXPONENTS) - 1)


def ssim(video: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004): two (3, F, H, W) in [-1, 1] -> (F,).

    Of RGB values in [0, 1], as it depends on where black lies. Gaussian window of 11 with sigma
    1.5, edges continued by reflection, mean over channels and positions.
    """
    pairs = zip(_pictures(video), _pictures(reference), strict=True)
    return torch.stack([_similarity(a, b)[0].mean() for a, b in pairs])


def ms_ssim(video: Tensor, reference: Tensor) -> Tensor:
    """Multi-scale structural similarity (Wang et al. 2003): two (3, F, H, W) in [-1, 1] -> (F,).

    The paper's five scales and exponents; otherwise as `ssim`, but that contrast is taken 5 pixels
    from the edges.
    """
    pairs = zip(_pictures(video), _pictures(reference), strict=True)
    return torch.stack([_multi_scale(a, b) for a, b in pairs])


def _multi_scale(a: Tensor, b: Tensor) -> Tensor:
    """Two (3, 1, H, W) in [0, 1] -> ()."""
    product = a.new_ones(())
    for exponent in EXPONENTS[:-1]:
        _, contrast = _similarity(a, b)
        inner = contrast[..., RADIUS:-RADIUS, RADIUS:-RADIUS]
        product = product * inner.mean().clamp_min(0) ** exponent
        a, b = nnf.avg_pool2d(a, 2), nnf.avg_pool2d(b, 2)
    return product * _similarity(a, b)[0].mean().clamp_min(0) ** EXPONENTS[-1]


def _similarity(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two (N, 1, H, W) in [0, 1] -> similarity and its contrast part, of the same shape."""
    mean_a, mean_b, square_a, square_b, product = (
        _blur(x) for x in (a, b, a.square(), b.square(), a * b)
    )
    variances = (square_a - mean_a**2).clamp_min(0) + (square_b - mean_b**2).clamp_min(0)
    contrast = (2 * (product - mean_a * mean_b) + C2) / (variances + C2)
    return contrast * (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1), contrast


def _blur(x: Tensor) -> Tensor:
    """(N, 1, H, W) -> its weighted means in the window."""
    return gaussian_blur(x, SIGMA, RADIUS, "reflect")


def _pictures(video: Tensor) -> Tensor:
    """(3, F, H, W) in [-1, 1] -> (F, 3, 1, H, W) in [0, 1]."""
    return rearrange((video.float() + 1) / 2, "c f h w -> f c 1 h w")
