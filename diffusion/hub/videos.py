"""What users have in hand -> the tensors of the project, and back."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffusion.data.transforms import normalize, to_float, to_uint8
from diffusion.data.video.clip import read_video
from diffusion.utils.errors import UserError

OUTPUT_TYPES = ("pt", "np", "pil")

Video = str | Path | Tensor | np.ndarray | Sequence[Image.Image]
"""A file; (B, 3, F, H, W) or (3, F, H, W) in [-1, 1], or uint8; (B, F, H, W, 3) or (F, H, W, 3) in
[0, 1], or uint8; or frames."""


def as_video(video: Video) -> Tensor:
    """-> (B, 3, F, H, W) float32 in [-1, 1]. Raises UserError for what is none of these."""
    if isinstance(video, str | os.PathLike):
        return read_video(video).video[None]
    if isinstance(video, Tensor):
        return _of_tensor(video)
    if isinstance(video, np.ndarray):
        return _of_array(video)
    if isinstance(video, Sequence) and video and isinstance(video[0], Image.Image):
        sizes = {frame.size for frame in video}
        if len(sizes) > 1:
            raise UserError(f"the pictures have {len(sizes)} different sizes; make them alike")
        return to_float(np.stack([np.asarray(frame.convert("RGB")) for frame in video]))[None]
    raise UserError(
        f"a video is a path, a tensor, a numpy array or a list of PIL images, not {_kind(video)}"
    )


def as_output(video: Tensor, output_type: str) -> Any:
    """(B, 3, F, H, W) in [-1, 1] -> "pt": the same; "np": (B, F, H, W, 3) in [0, 1]; "pil": lists
    of pictures, one for each video."""
    check_output_type(output_type)
    if output_type == "pt":
        return video
    if output_type == "np":
        levels = (video.float() / 2 + 0.5).clamp(0, 1).cpu()
        return levels.permute(0, 2, 3, 4, 1).contiguous().numpy()
    return [[Image.fromarray(frame) for frame in to_uint8(one)] for one in video]


def check_output_type(output_type: str) -> None:
    if output_type not in OUTPUT_TYPES:
        raise UserError(f"output_type={output_type!r} is not one of {', '.join(OUTPUT_TYPES)}")


def _of_tensor(video: Tensor) -> Tensor:
    video = video[None] if video.ndim == 4 else video
    if video.ndim != 5 or video.shape[1] != 3:
        raise UserError(
            f"a tensor of a video is (B, 3, F, H, W) or (3, F, H, W), not {tuple(video.shape)}"
        )
    if video.dtype == torch.uint8:
        return normalize(video)
    _check_range(video, -1, "a tensor")
    return video.float()


def _of_array(video: np.ndarray) -> Tensor:
    video = video[None] if video.ndim == 4 else video
    if video.ndim != 5 or video.shape[-1] != 3:
        raise UserError(
            f"an array of a video is (B, F, H, W, 3) or (F, H, W, 3), not {tuple(video.shape)}"
        )
    tensor = torch.from_numpy(np.ascontiguousarray(video)).permute(0, 4, 1, 2, 3)
    if video.dtype == np.uint8:
        return normalize(tensor)
    _check_range(tensor, 0, "an array")
    return 2 * tensor.float() - 1


def _check_range(video: Tensor, least: int, kind: str) -> None:
    """A factor of 255 or an offset is the commonest mistake; rounding may go a little beyond."""
    if not video.is_floating_point():
        raise UserError(f"{kind} of a video is uint8 or floating point, not {video.dtype}")
    low, high = video.aminmax() if video.numel() else (torch.zeros(1), torch.zeros(1))
    if not (low >= least - 0.5 and high <= 1.5):  # nor NaN
        raise UserError(
            f"{kind} of a video in floating point is in [{least}, 1]; this one has values from "
            f"{low.item():.3g} to {high.item():.3g}"
        )


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"
