"""Pixels: 8-bit frames to the model's range and back."""

import numpy as np
import torch
from einops import rearrange
from torch import Tensor


def to_float(frames: np.ndarray | Tensor) -> Tensor:
    """(F, H, W, 3) uint8 -> (3, F, H, W) float32 in [-1, 1]."""
    frames = torch.as_tensor(frames)
    return rearrange(frames, "f h w c -> c f h w").contiguous().float() / 127.5 - 1
