"""Whole clips, read into one array or tensor."""

import os
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from diffusion.data.transforms import to_float
from diffusion.data.video.open_video import open_video
from diffusion.utils.errors import VideoError
from diffusion.utils.progress import track

MAX_CLIP_BYTES = 8 * 2**30  # of uint8 frames held at once


@dataclass(frozen=True)
class Clip:
    """A piece of a video.

    video: (C, F, H, W) float32 RGB in [-1, 1].
    fps: frames per second of `video`, after frame_stride.
    """

    video: Tensor
    fps: float


def read_frames(
    path: str | os.PathLike[str],
    *,
    start: int = 0,
    num_frames: int | None = None,
    frame_stride: int = 1,
    fps: float | None = None,
) -> np.ndarray:
    """(F, H, W, 3) uint8 RGB; the arguments are those of `FrameReader.frames`."""
    return _read(path, start, num_frames, frame_stride, fps)[0]


def read_video(
    path: str | os.PathLike[str],
    *,
    start: int = 0,
    num_frames: int | None = None,
    frame_stride: int = 1,
    fps: float | None = None,
) -> Clip:
    """A clip in the model's pixel range; the arguments are those of `FrameReader.frames`."""
    frames, rate = _read(path, start, num_frames, frame_stride, fps)
    return Clip(to_float(frames), rate)


def _read(
    path: str | os.PathLike[str],
    start: int,
    num_frames: int | None,
    frame_stride: int,
    fps: float | None,
) -> tuple[np.ndarray, float]:
    with open_video(path) as reader:
        info = reader.info
        frame_bytes = 3 * info.width * info.height
        most = MAX_CLIP_BYTES // frame_bytes
        too_long = (
            f"more than {most} frames of {info.width}x{info.height} do not fit in memory; "
            "pass fewer num_frames, or read them in pieces with open_video(...).chunks"
        )
        if num_frames is not None and num_frames > most:
            raise VideoError(path, too_long)
        frames = []
        for frame in track(reader.frames(start, num_frames, frame_stride, fps)):
            if len(frames) == most:
                raise VideoError(path, too_long)
            frames.append(frame)
        return np.stack(frames), (fps or info.fps) / frame_stride
