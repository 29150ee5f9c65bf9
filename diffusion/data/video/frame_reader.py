"""What everything that shows frames has in common: videos, pictures, folders of pictures."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np

from diffusion.utils.errors import UserError

MAX_PIXELS = 2**26  # of one frame: 8192 x 8192

Kind = TypeVar("Kind", bound="FrameReader")


@dataclass(frozen=True)
class VideoInfo:
    """What is known before decoding all of a video.

    width, height: of the frames that the reader yields, turned upright.
    fps: average frame rate.
    num_frames: as the container says, None where it does not; `count_frames` is exact.
    duration: seconds, None where unknown.
    rotation: degrees clockwise by which the stored frames are turned to stand upright.
    pixel_aspect: width of a pixel by its height, after rotation. Noted only: frames are not
        stretched.
    """

    path: Path
    width: int
    height: int
    fps: float
    num_frames: int | None
    duration: float | None
    rotation: int = 0
    pixel_aspect: Fraction = Fraction(1)


class FrameReader(ABC):
    """Frames in order, as upright 8-bit RGB; `open_video` makes the right one for a path.

    with open_video("clip.mp4") as reader:
        for frame in reader.frames(start=30, num_frames=8, frame_stride=2):  # (H, W, 3) uint8
            ...

    A reader can be read several times.
    """

    info: VideoInfo

    def __enter__(self: Kind) -> Kind:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[np.ndarray]:
        return self.frames()

    def close(self) -> None:  # noqa: B027 not all hold something
        """End a reading in progress and let go of the file."""

    @abstractmethod
    def count_frames(self) -> int:
        """The exact number of frames: without decoding where that can be."""

    @abstractmethod
    def frames(
        self,
        start: int = 0,
        num_frames: int | None = None,
        frame_stride: int = 1,
        fps: float | None = None,
    ) -> Iterator[np.ndarray]:
        """Yield (H, W, 3) uint8 RGB frames `start`, `start + frame_stride`, ...

        By default frames come as stored, whatever their timestamps. With `fps` they are first
        resampled to that constant rate by their timestamps (frames repeated or left out), and
        `start` and `frame_stride` count resampled frames.

        num_frames: None reads to the end. VideoError if there are fewer.
        Starting a reading ends the reader's one before it.
        """

    def chunks(
        self, size: int, start: int = 0, num_frames: int | None = None, frame_stride: int = 1
    ) -> Iterator[np.ndarray]:
        """Yield (f, H, W, 3) uint8 with f = size, the last one with what is left."""
        frames = self.frames(start, num_frames, frame_stride)
        while chunk := list(islice(frames, size)):
            yield np.stack(chunk)


def check_reading(start: int, num_frames: int | None, frame_stride: int) -> None:
    if start < 0 or frame_stride < 1 or (num_frames is not None and num_frames < 1):
        raise UserError(
            f"start {start}, num_frames {num_frames}, frame_stride {frame_stride}: "
            "start is at least 0, the others at least 1"
        )


def num_steps(length: int, stride: int) -> int:
    """How many of 0, stride, 2 * stride, ... lie below length."""
    return max(0, -(-length // stride))


def too_few(count: int, start: int, num_frames: int, stride: int, *, called: str = "frames") -> str:
    """Why `num_frames` frames cannot be had of `count`, and how many can."""
    available = num_steps(count - start, stride)
    if available == 0:
        return f"has {count} {called}; start {start} is past the last one"
    return (
        f"has {count} {called}, too few for {num_frames} from start {start} with stride {stride}: "
        f"pass num_frames {available} or fewer"
    )
