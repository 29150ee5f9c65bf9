"""Frames and clips made as long as networks need them; what is added is cut off afterwards."""

import torch.nn.functional as F
from torch import Tensor

from diffusion.utils.errors import UserError


def round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def pad_reflect(video: Tensor, multiple: int) -> Tensor:
    """(B, C, F, H, W) -> bottom and right padded by reflection to multiples of `multiple`."""
    height, width = video.shape[-2:]
    bottom, right = round_up(height, multiple) - height, round_up(width, multiple) - width
    if bottom == right == 0:
        return video
    if bottom >= height or right >= width:
        raise UserError(
            f"frames of {width}x{height} pixels are too small; both sides must be more than half "
            f"of {multiple}: enlarge the video, e.g. with --size {multiple}"
        )
    return F.pad(video, (0, right, 0, bottom, 0, 0), mode="reflect")


def pad_edges(x: Tensor, size: tuple[int, int, int]) -> Tensor:
    """(B, C, F, H, W) -> (B, C, *size), repeating the last frame, row and column."""
    missing = [wanted - had for wanted, had in zip(size, x.shape[2:], strict=True)]
    if not any(missing):
        return x
    frames, rows, columns = missing
    return F.pad(x, (0, columns, 0, rows, 0, frames), mode="replicate")
