"""Reading a video: which frames, at which rate, as upright 8-bit RGB."""

import math
import os
from collections.abc import Generator, Iterator
from itertools import islice

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from diffusion.data.video.frame_reader import (
    MAX_PIXELS,
    FrameReader,
    check_reading,
    num_steps,
    too_few,
)
from diffusion.data.video.rgb import frame_to_rgb
from diffusion.data.video.seeking import Seeking
from diffusion.data.video.video_file import VideoFile
from diffusion.utils.errors import UserError, VideoError

MAX_FRAMES = 200_000  # of one reading: two hours at 25 fps


class VideoReader(FrameReader):
    """One local video file.

    Opening decodes one frame, so that a file that cannot be read is refused at once.

    max_pixels: largest frame, checked before anything is decoded.
    max_frames: most frames that one reading may yield.
    threads: of the decoder; 0 lets FFmpeg choose.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_pixels: int = MAX_PIXELS,
        max_frames: int = MAX_FRAMES,
        threads: int = 0,
    ):
        self._file = VideoFile(path, max_pixels, threads)
        self._reading: Generator[np.ndarray] | None = None
        self.max_frames = max_frames
        self.info = self._file.info

    def close(self) -> None:
        self._end_reading()
        self._file.close()

    def _end_reading(self) -> None:
        if self._reading is not None:
            self._reading.close()
            self._reading = None

    def count_frames(self) -> int:
        return self._file.count_frames()

    def frames(
        self,
        start: int = 0,
        num_frames: int | None = None,
        frame_stride: int = 1,
        fps: float | None = None,
    ) -> Iterator[np.ndarray]:
        check_reading(start, num_frames, frame_stride)
        if fps is not None and not 0 < fps < math.inf:
            raise UserError(f"fps {fps} must be a positive number")
        self._end_reading()
        self._reading = self._read(start, num_frames, frame_stride, fps)
        return self._reading

    def _read(
        self, start: int, num_frames: int | None, frame_stride: int, fps: float | None
    ) -> Generator[np.ndarray]:
        if fps is None:
            self._refuse_early(start, num_frames, frame_stride)
        given = 0
        reformatter = VideoReformatter()
        with self._file.open() as opened:
            if fps is None:
                frames = Seeking(self._file, *opened).frames(start, frame_stride, num_frames)
            else:
                resampled = self._at_rate(fps, self._file.decode(*opened))
                frames = islice(resampled, start, None, frame_stride)
            for frame in frames:
                if given == self.max_frames:
                    raise self._file.error(f"has more frames than max_frames {self.max_frames}")
                yield frame_to_rgb(frame, reformatter)
                given += 1
                if given == num_frames:
                    return
        if given == 0 and fps is not None:
            raise self._file.error(f"ends before start {start} at {fps:g} frames per second")
        if num_frames is not None or given == 0:
            most = start + given * frame_stride
            count = most if fps is not None else min(most, self._file.count_frames())
            raise self._too_short(count, start, num_frames or 1, frame_stride)

    def _refuse_early(self, start: int, num_frames: int | None, frame_stride: int) -> None:
        """Refuse before decoding what the container already says cannot be had."""
        known = self.info.num_frames
        available = None if known is None else num_steps(known - start, frame_stride)
        wanted = num_frames or available or 0
        if wanted > self.max_frames:
            raise self._file.error(
                f"{wanted} frames exceed the limit of {self.max_frames}; pass fewer num_frames "
                "or raise max_frames"
            )
        if available is not None and available < (num_frames or 1):
            exact = self.count_frames()
            if num_steps(exact - start, frame_stride) < (num_frames or 1):
                raise self._too_short(exact, start, num_frames or 1, frame_stride)

    def _too_short(self, count: int, start: int, num_frames: int, stride: int) -> VideoError:
        return self._file.error(too_few(count, start, num_frames, stride))

    def _at_rate(self, fps: float, frames: Iterator[VideoFrame]) -> Iterator[VideoFrame]:
        """Frame k is the one on screen k / fps seconds after the first frame."""
        shown, origin, end, k = None, 0.0, 0.0, 0
        for number, frame in enumerate(frames):
            time = number / self.info.fps if frame.time is None else frame.time
            if shown is None:
                origin = time
            while shown is not None and k / fps < time - origin - 1e-6:
                yield shown
                k += 1
            shown, end = frame, time - origin + 1 / self.info.fps
        while shown is not None and k / fps < end - 1e-6:
            yield shown
            k += 1
