"""The clip that a user asked for, as the cascade gets it."""

import math
from dataclasses import dataclass
from pathlib import Path

from diffusion.data.transforms import (
    crop_square,
    published_preprocess,
    resize_short_edge,
    to_float,
    to_uint8,
)
from diffusion.data.video_io import Clip, VideoReader, read_video


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


def read_clip(path: str | Path, options: ClipOptions) -> Clip:
    """The part of the video that `options` name. Raises VideoError if it cannot be had."""
    clip = read_video(
        path,
        start=options.start,
        num_frames=options.num_frames or limited_frames(path, options),
        frame_stride=options.frame_stride,
    )
    video = crop_square(clip.video) if options.square else clip.video
    short_edge = min(video.shape[-2:])
    size = options.size or min(short_edge, options.max_short_edge or short_edge)
    if options.published_preprocess:
        frames = published_preprocess(to_uint8(video), size)
        return Clip(to_float(frames), clip.fps)
    return Clip(video if size == short_edge else resize_short_edge(video, size), clip.fps)


def limited_frames(path: str | Path, options: ClipOptions) -> int | None:
    """`max_frames` where the video has more; else None, which reads to a verified end."""
    if options.max_frames is None:
        return None
    with VideoReader(path) as reader:
        left = math.ceil((reader.count_frames() - options.start) / options.frame_stride)
    return options.max_frames if left > options.max_frames else None
