"""Pieces of a video to encode once: consecutive frames, made smaller."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffusion.data.training.crops import Window
from diffusion.data.transforms import SIDE_MULTIPLE, crop_to_multiple, resize_short_edge, to_float
from diffusion.data.video.open_video import open_video
from diffusion.utils.errors import VideoError

SHOWN = (0.75, 0.9)  # share of a photograph's sides that its moving window shows


def read_segment(
    path: Path,
    place: tuple[float, float],
    num_frames: int,
    frame_stride: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """(num_frames, H, W, 3) uint8: every `frame_stride`th frame, from a random start in `place`.

    place: part of the possible starts, 0 to 1, so that several segments spread over a video.
    A still picture becomes a slow camera motion; VideoError if a video is too short.
    """
    with open_video(path) as reader:
        total = reader.count_frames()
        if total == 1:
            return camera_motion(next(reader.frames()), num_frames, rng)
        starts = total - (num_frames - 1) * frame_stride
        if starts < 1:
            raise VideoError(
                path,
                f"has {total} frames, fewer than the {total - starts + 1} that {num_frames} with "
                f"stride {frame_stride} need",
            )
        start = min(starts - 1, int(starts * rng.uniform(*place)))
        return np.stack(list(reader.frames(start, num_frames, frame_stride)))


def places(count: int) -> list[tuple[float, float]]:
    """0 to 1 in `count` equal parts."""
    return list(pairwise(np.linspace(0, 1, count + 1).tolist()))


def camera_motion(picture: np.ndarray, num_frames: int, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) -> (num_frames, h, w, 3): a window that moves evenly over a photograph."""
    sides = np.array(picture.shape[:2])
    height, width = np.maximum(1, sides * rng.uniform(*SHOWN)).astype(int)
    spare = sides - (height, width)
    begin, end = rng.uniform(0, 1, (2, 2)) * spare
    corners = np.linspace(begin, end, num_frames).round().astype(int)
    return np.stack([Window(*corner, height, width).cut(picture) for corner in corners])


def shrink(frames: np.ndarray, short_edge: tuple[int, int], rng: np.random.Generator) -> Tensor:
    """(F, H, W, 3) uint8 -> (3, F, h, w) in [-1, 1], sides cut to multiples of 32.

    short_edge: least and most. Drawn between them, but no frame is enlarged beyond the least.
    """
    low, high = short_edge
    size = int(rng.integers(low, max(low, min(high, *frames.shape[1:3])) + 1))
    # one by one: large frames are only held as bytes
    resized = [resize_short_edge(to_float(frame[None]), size) for frame in frames]
    return crop_to_multiple(torch.cat(resized, dim=1), SIDE_MULTIPLE)
