"""Statistics of ImageNet's pictures, by which networks trained on them expect their input."""

from typing import Final

import torch
from torch import Tensor

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)


def imagenet_statistics() -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of RGB in [0, 1], (3, 1, 1) each."""
    mean, std = (torch.tensor(values) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return mean.view(3, 1, 1), std.view(3, 1, 1)
