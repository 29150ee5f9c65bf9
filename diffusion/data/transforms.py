"""Pixels: 8-bit frames to the model's range and back, resizing, cropping.

Frames are uint8 (F, H, W, 3); a video is float (C, F, H, W) in [-1, 1].
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as nnf
from einops import rearrange
from torch import Tensor

from diffusion.utils.errors import UserError

SIDE_MULTIPLE = 32  # of frames' sides: the pixels of one position of the semantic latents


def to_float(frames: np.ndarray | Tensor) -> Tensor:
    """(F, H, W, 3) uint8 -> (3, F, H, W) float32 in [-1, 1]."""
    return normalize(rearrange(as_tensor(frames), "f h w c -> c f h w").contiguous())


def normalize(levels: Tensor) -> Tensor:
    """uint8 of any shape -> float32 in [-1, 1], on the same device."""
    return levels.float().div_(127.5).sub_(1)


def as_tensor(frames: np.ndarray | Tensor) -> Tensor:
    """Of frames that may be read-only, as Pillow's and mapped ones are: torch wants them writable.

    Nothing is written to the tensor, so that it may share their memory where that is allowed.
    """
    if isinstance(frames, np.ndarray) and not frames.flags.writeable:
        frames = frames.copy()
    return torch.as_tensor(frames)


def to_uint8(video: Tensor, *, rounding: bool = True) -> np.ndarray:
    """(3, F, H, W) in [-1, 1] -> (F, H, W, 3) uint8; values outside are clamped.

    rounding: False truncates as the published code does, which darkens by half a level.
    """
    levels = (127.5 * video.detach().float() + 127.5).clamp(0, 255)
    if levels.isnan().any():
        raise ValueError("the video holds values that are not numbers (NaN)")
    levels = levels.round() if rounding else levels
    return rearrange(levels.to(torch.uint8), "c f h w -> f h w c").contiguous().cpu().numpy()


def resize(video: Tensor, height: int, width: int, *, mode: str = "bicubic") -> Tensor:
    """(C, F, H, W) -> (C, F, height, width), with antialiasing; stays in [-1, 1]."""
    if video.shape[-2:] == (height, width):
        return video
    frames = rearrange(video, "c f h w -> f c h w")
    frames = nnf.interpolate(frames, (height, width), mode=mode, antialias=True)
    return rearrange(frames, "f c h w -> c f h w").clamp(-1, 1)


def resize_short_edge(video: Tensor, size: int, *, mode: str = "bicubic") -> Tensor:
    """(C, F, H, W) -> short edge `size`, the other in proportion, both even."""
    height, width = video.shape[-2:]
    scale = size / min(height, width)
    even_height, even_width = (max(2, 2 * round(side * scale / 2)) for side in (height, width))
    return resize(video, even_height, even_width, mode=mode)


def center_crop(video: Tensor, height: int, width: int) -> Tensor:
    """(..., H, W) -> (..., height, width) from the middle."""
    top, left = (video.shape[-2] - height) // 2, (video.shape[-1] - width) // 2
    if top < 0 or left < 0:
        raise UserError(
            f"cannot crop {width}x{height} from frames of {video.shape[-1]}x{video.shape[-2]}; "
            "resize them first"
        )
    return video[..., top : top + height, left : left + width]


def crop_to_multiple(video: Tensor, multiple: int) -> Tensor:
    """(..., H, W) -> the largest central part with both sides multiples of `multiple`."""
    height, width = (side // multiple * multiple for side in video.shape[-2:])
    if not (height and width):
        raise UserError(
            f"frames of {video.shape[-1]}x{video.shape[-2]} are smaller than "
            f"{multiple}x{multiple}, the least that can be processed; resize them first"
        )
    return center_crop(video, height, width)


def crop_square(video: Tensor) -> Tensor:
    """(..., H, W) -> (..., S, S) with S the short edge."""
    side = min(video.shape[-2:])
    return center_crop(video, side, side)


def published_preprocess(frames: np.ndarray, size: int, multiple: int = 32) -> np.ndarray:
    """(F, H, W, 3) -> (F, h, w, 3), uint8: what the published code does before encoding.

    A 3x3 box blur, always; bilinear resizing without antialiasing to short edge `size`; the
    central part with sides multiples of `multiple`. For comparison with published results only.
    """
    video = rearrange(as_tensor(frames), "f h w c -> f c h w").float()
    height, width = video.shape[-2:]
    video = nnf.avg_pool2d(nnf.pad(video, (1, 1, 1, 1), mode="reflect"), 3, stride=1).round()
    scale = size / min(height, width)
    target = (round(height * scale), round(width * scale))
    video = nnf.interpolate(video, target, mode="bilinear", align_corners=False).round()
    video = crop_to_multiple(video, multiple).to(torch.uint8)
    return rearrange(video, "f c h w -> f h w c").contiguous().numpy()


def side_by_side(videos: Sequence[Tensor]) -> Tensor:
    """Videos (C, F_i, H_i, W_i), left to right -> (C, F, H, sum of widths), F and H the largest.

    Smaller ones are enlarged bilinearly, keeping their aspect; slower ones repeat frames. The
    result is on the device of the first.
    """
    device = videos[0].device
    num_frames = max(video.shape[1] for video in videos)
    height = max(video.shape[2] for video in videos)
    columns = []
    for video in videos:
        shown = torch.arange(num_frames, device=video.device) * video.shape[1] // num_frames
        width = round(video.shape[3] * height / video.shape[2])
        columns.append(resize(video[:, shown], height, width, mode="bilinear").to(device))
    return torch.cat(columns, dim=-1)
