"""How close a reconstruction is to the original, frame by frame."""

import torch
from einops import rearrange
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure


def psnr(video: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB: two (3, F, H, W) in [-1, 1] -> (F,)."""
    squared_error = (video.double() - reference.double()).square().mean((0, 2, 3))
    return 10 * torch.log10(4 / squared_error.clamp_min(1e-12))


def ssim(video: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004): two (3, F, H, W) in [-1, 1] -> (F,).

    Of RGB values in [0, 1], as it depends on where black lies. Gaussian window of 11 with sigma
    1.5, edges continued by reflection, mean over channels and positions.
    """
    pairs = zip(_pictures(video), _pictures(reference), strict=True)
    return torch.stack(
        [structural_similarity_index_measure(a, b, data_range=1.0) for a, b in pairs]
    )


def _pictures(video: Tensor) -> Tensor:
    """(3, F, H, W) in [-1, 1] -> (F, 1, 3, H, W) in [0, 1]."""
    return rearrange((video.float() + 1) / 2, "c f h w -> f 1 c h w")
