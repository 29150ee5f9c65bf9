"""The clip that a user asked for, as the cascade gets it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from diffusion.data.transforms import (
    crop_square,
    published_preprocess,
    resize_short_edge,
    to_float,
    to_uint8,
)
from diffusion.data.video.open_video import open_video


@dataclass(frozen=True)
class ClipOptions:
    """Which part of a video, at which size.

    num_frames: None is all there are from `start`, but no more than `max_frames`.
    size: short edge in pixels; None keeps the video's, but no more than `max_short_edge`.
    published_preprocess: blur, resize and crop as the published implementation did.
    """

    start: int = 0
    num_frames: int | None = None
    frame_stride: int = 1
    size: int | None = None
    square: bool = False
    max_frames: int | None = None
    max_short_edge: int | None = None
    published_preprocess: bool = False


@dataclass(frozen=True)
class ClipSource:
    """The part of a video that `options` name, read in pieces, as often as one likes.

    A picture is a video of one frame, a folder of numbered pictures one of as many.

    fps: after frame_stride. height, width: as the options make them.
    """

    path: Path
    options: ClipOptions
    num_frames: int
    fps: float
    height: int
    width: int

    @property
    def name(self) -> str:
        """What results are called after."""
        path = self.path.resolve()
        return path.name if path.is_dir() else path.stem

    def chunks(self, size: int) -> Iterator[Tensor]:
        """Videos (3, f, H, W) in [-1, 1] with f = size, the last one with what is left.

        Raises VideoError if the video turns out to be damaged.
        """
        options = self.options
        with open_video(self.path) as reader:
            for frames in reader.chunks(size, options.start, self.num_frames, options.frame_stride):
                yield prepare(frames, options)


def open_clip(path: str | Path, options: ClipOptions) -> ClipSource:
    """Look at the video's beginning and length. Raises VideoError if the clip cannot be had."""
    with open_video(path) as reader:
        left = math.ceil((reader.count_frames() - options.start) / options.frame_stride)
        num_frames = options.num_frames or min(left, options.max_frames or left)
        first = next(reader.chunks(1, options.start, max(1, num_frames), options.frame_stride))
        fps = reader.info.fps / options.frame_stride
    height, width = prepare(first, options).shape[-2:]
    return ClipSource(Path(path), options, num_frames, fps, height, width)


def every_nth(clip: ClipSource, n: int) -> ClipSource:
    """Of the clip's frames only the first, the n-th after it, and so on."""
    options = replace(clip.options, frame_stride=n * clip.options.frame_stride)
    num_frames = math.ceil(clip.num_frames / n)
    return replace(clip, options=options, num_frames=num_frames, fps=clip.fps / n)


def prepare(frames: np.ndarray, options: ClipOptions) -> Tensor:
    """(F, H, W, 3) uint8 as read -> (3, F, h, w) in [-1, 1], of the size that `options` say."""
    video = to_float(frames)
    video = crop_square(video) if options.square else video
    short_edge = min(video.shape[-2:])
    size = options.size or min(short_edge, options.max_short_edge or short_edge)
    if options.published_preprocess:
        return to_float(published_preprocess(to_uint8(video), size))
    return video if size == short_edge else resize_short_edge(video, size)
