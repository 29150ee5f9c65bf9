"""Which videos, frames and pixels an evaluation measures: everything that its numbers depend on."""

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffusion.data.transforms import crop_square, resize_short_edge, to_float
from diffusion.data.video.clip import Clip
from diffusion.data.video.open_video import open_video
from diffusion.data.video.pictures import PictureReader
from diffusion.data.video.video_reader import VideoReader
from diffusion.data.video_list import list_videos
from diffusion.utils.errors import UserError, VideoError

log = logging.getLogger(__name__)

RATE_TOLERANCE = 0.01


@dataclass(frozen=True)
class Protocol:
    """A way to measure that others can repeat.

    short_edge: pixels; None keeps the video's size.
    only_shrink: smaller videos keep their size.
    square: the central square is measured, else the whole frame.
    fps: frames are taken at this rate by their timestamps, the one on screen at each instant; None
        takes frames as stored. Slower videos are refused: they would have frames twice.
    start: first frame, counted at `fps`.
    num_frames: at most, None is all of them.
    num_videos: the first of the selected, None is all of them.
    folder: within the folder of a data set, where its videos are.
    numbered: videos are named N.mp4, from 1, and taken in the order of N.
    notes: what the numbers depend on beside, or what is not known.
    """

    name: str
    short_edge: int | None = None
    only_shrink: bool = False
    square: bool = False
    resize_filter: str = "bicubic"
    fps: float | None = None
    start: int = 0
    num_frames: int | None = None
    num_videos: int | None = None
    folder: str | None = None
    numbered: bool = False
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        for name, least in (("short_edge", 2), ("num_frames", 1), ("num_videos", 1), ("start", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{name} is {value}, but must be at least {least}")
        if self.fps is not None and self.fps <= 0:
            raise UserError(f"fps is {self.fps}, but must be above 0")

    def select(self, videos: Sequence[str] | str) -> list[Path]:
        """Entries as of a `video_list` -> the videos to measure, in order."""
        entries = [videos] if isinstance(videos, str | Path) else list(videos)
        inner = [str(self._inner(Path(entry).expanduser())) for entry in entries]
        paths = list_videos(inner, called="videos")
        if self.numbered:
            paths = sorted(paths, key=self._number)
        paths = paths[: self.num_videos]
        if self.numbered and self.num_videos is not None:
            self._warn_of_gaps(paths)
        return paths

    def _warn_of_gaps(self, paths: Sequence[Path]) -> None:
        there = {self._number(path) for path in paths}
        absent = [f"{n}.mp4" for n in range(1, self.num_videos + 1) if n not in there]
        if absent:
            more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
            log.warning(
                "%s: measures 1.mp4 to %d.mp4, and %s%s are not there: the figures do not compare "
                "with published ones",
                self.name,
                self.num_videos,
                ", ".join(absent[:3]),
                more,
            )

    def read(self, path: str | Path) -> Clip:
        """The frames to measure; VideoError where the video does not have them."""
        with open_video(path) as reader:
            fps, frames = self._frames(reader)
            # one by one: large frames are not held
            pieces = [self._sized(to_float(frame[None])) for frame in frames]
        if not pieces:
            raise VideoError(path, f"ends before frame {self.start}")
        return Clip(torch.cat(pieces, dim=1), fps)

    def describe(self) -> dict[str, object]:
        """For the results: everything that decides which pixels are compared, and what stays."""
        rate = f"{self.fps:g} frames per second, by timestamps" if self.fps else "as stored"
        return {
            **asdict(self),
            "notes": list(self.notes),
            "frames": f"{f'at most {self.num_frames}' if self.num_frames else 'all'} frames from "
            f"frame {self.start}, {rate}",
            "size": self._size_in_words(),
            "resize": f"{self.resize_filter} with antialiasing, on RGB (torch interpolate)"
            if self.short_edge
            else "none",
            "color": "8-bit RGB, by the file's matrix and range (FFmpeg's swscale); where it names "
            "none, BT.709 from 1280 pixels wide or 577 high, else BT.601",
            "data_range": "[0, 1], not rounded after resizing",
            "averaging": "over the frames of a video, then over videos",
        }

    def _inner(self, entry: Path) -> Path:
        """The data set's own folder of videos, where the entry is the folder above it."""
        inner = entry / self.folder if self.folder else entry
        return inner if inner.is_dir() else entry

    def _number(self, path: Path) -> int:
        if not re.fullmatch(r"[0-9]+", path.stem):
            raise UserError(
                f"{path}: {self.name} takes videos that are named by number, such as 1.mp4; pass "
                "the folder that holds only these, or --protocol whole-16"
            )
        return int(path.stem)

    def _frames(self, reader: VideoReader | PictureReader) -> tuple[float, Iterator[np.ndarray]]:
        """Frame rate, and (H, W, 3) uint8 frames."""
        stored = reader.info.fps
        if self.fps is None:
            return stored, islice(reader.frames(self.start), self.num_frames)
        if isinstance(reader, PictureReader):
            raise VideoError(reader.info.path, f"{self.name} needs videos, not pictures")
        # Of 59.94, 29.97 is taken for 30: at 30, some frames would come twice.
        nearest = stored / max(1, round(stored / self.fps))
        rate = nearest if abs(nearest / self.fps - 1) < RATE_TOLERANCE else self.fps
        if stored < rate:
            raise VideoError(
                reader.info.path,
                f"has {stored:g} frames per second, fewer than the {self.fps:g} of {self.name}",
            )
        return rate, islice(reader.frames(self.start, fps=rate), self.num_frames)

    def _sized(self, video: Tensor) -> Tensor:
        """(3, 1, H, W) -> (3, 1, h, w)."""
        short = min(video.shape[-2:])
        if self.short_edge and not (self.only_shrink and short <= self.short_edge):
            video = resize_short_edge(video, self.short_edge, mode=self.resize_filter)
        return crop_square(video) if self.square else video

    def _size_in_words(self) -> str:
        words = "as stored"
        if self.short_edge:
            words = f"short edge {'at most ' * self.only_shrink}{self.short_edge}"
        return words + (", central square" if self.square else ", whole frame")


INTER4K_200 = Protocol(
    name="inter4k-200",
    short_edge=1024,
    square=True,
    fps=30,
    num_videos=200,
    folder="60fps/UHD",
    numbered=True,
    notes=(
        "Inter4K (Stergiou & Poppe 2021): 1.mp4 to 200.mp4, 1024x1024, 30 frames per second",
        "not stated by the publication, and chosen here: all frames of a video, bicubic resizing, "
        "the window of SSIM, the net of LPIPS",
    ),
)
WHOLE_16 = Protocol(name="whole-16", short_edge=512, only_shrink=True, num_frames=16)
# four times as many frames between 5 of them are 17
SMALL_17 = Protocol(name="small-17", short_edge=256, only_shrink=True, num_frames=17)

PROTOCOLS = {protocol.name: protocol for protocol in (INTER4K_200, WHOLE_16, SMALL_17)}


def get_protocol(name: str) -> Protocol:
    if name not in PROTOCOLS:
        raise UserError(f"--protocol {name!r} is unknown; use {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
