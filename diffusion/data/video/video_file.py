"""One local video file: described, decoded forward, counted."""

import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from diffusion.data.video.container import (
    Opened,
    check_ordinary,
    open_container,
    reason,
    video_error,
)
from diffusion.data.video.frame_reader import VideoInfo
from diffusion.data.video.packets import (
    MAX_REORDER,
    ONE_FRAME_PER_PACKET,
    Ahead,
    has_full_index,
)
from diffusion.data.video.rgb import upright
from diffusion.utils.errors import VideoError


class VideoFile:
    """Decoded frames of one file. Every failure is a VideoError that names it.

    is_indexed: an index tells every packet. is_numbered: every packet is one frame.
    max_pixels: largest frame, checked before anything is decoded.
    threads: of the decoder; 0 lets FFmpeg choose.
    """

    def __init__(self, path: str | os.PathLike[str], max_pixels: int, threads: int):
        self.path = Path(path)
        self.max_pixels = max_pixels
        self.threads = threads
        check_ordinary(self.path)
        self._kept: Opened | None = None
        with ExitStack() as stack:
            container, stream = open_container(self.path, self.max_pixels, self.threads)
            stack.enter_context(container)
            begin, packets = self.look_ahead(container, stream)
            self.is_indexed = begin.is_clean and has_full_index(container, stream)
            first = self._first_frame(begin, packets, container, stream)
            if first is None:
                raise self.error("no frame of it can be decoded")
            self._stored_size = (first.width, first.height)
            codec = stream.codec_context.name
            self.is_numbered = codec in ONE_FRAME_PER_PACKET and not first.interlaced_frame
            self.info = self._describe(container, stream, first)
            if self.is_indexed:
                # Opening costs as much as decoding some frames: the first reading goes on here.
                self.rewind(container, stream)
                self._kept = container, stream
                stack.pop_all()

    def error(self, problem: str) -> VideoError:
        return video_error(self.path, problem)

    @contextmanager
    def open(self) -> Generator[Opened]:
        """The file at its beginning, until the end of the block."""
        kept, self._kept = self._kept, None
        container, stream = kept or open_container(self.path, self.max_pixels, self.threads)
        with container:
            yield container, stream

    def close(self) -> None:
        if self._kept is not None:
            self._kept[0].close()
            self._kept = None

    def decode(
        self,
        container: InputContainer,
        stream: VideoStream,
        packets: Iterable["Packet[VideoStream]"] | None = None,
        wanted: Sequence[int] = (),
    ) -> Iterator[VideoFrame]:
        """Frames from the container's position to its end, in the order of display.

        packets: the rest of the file's, where some were looked at already.
        wanted: times. Other frames up to the last of these are left out where no frame needs them,
            which is about half of them in a video with B-frames.
        """
        context = stream.codec_context
        last = wanted[-1] if wanted else None
        needless = frozenset(wanted).isdisjoint
        try:
            for packet in packets or container.demux(stream):
                time = packet.pts
                early = last is not None and time is not None and time < last
                skip = early and needless((time,))
                context.skip_frame = "NONREF" if skip else "DEFAULT"
                for frame in packet.decode():
                    self._check_size(frame)
                    yield frame
        except av.FFmpegError as error:
            raise self.error(f"is damaged: decoding stopped ({reason(error)})") from error
        if container.format.name.startswith("mov"):
            # FFmpeg ends a cut-off mp4 as if it were complete; its index knows better.
            end = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
            if end > (size := self.path.stat().st_size):
                raise self.error(
                    f"is cut off: {size} of at least {end} bytes are there; copy it again, "
                    "or pass num_frames to read only its beginning"
                )

    def _first_frame(
        self,
        begin: Ahead,
        packets: Iterator["Packet[VideoStream]"],
        container: InputContainer,
        stream: VideoStream,
    ) -> VideoFrame | None:
        if self.is_indexed:  # the first packet is enough; the decoder would wait for some more
            with suppress(av.FFmpegError):
                frames = [*begin.packets[0].decode(), *stream.codec_context.decode(None)]
                self.rewind(container, stream)
                if frames:
                    return frames[0]
            self.rewind(container, stream)
            packets = container.demux(stream)
        return next(self.decode(container, stream, packets), None)

    def look_ahead(
        self, container: InputContainer, stream: VideoStream, count: int = 0
    ) -> tuple[Ahead, Iterator["Packet[VideoStream]"]]:
        """The next packets, `count` and some more; and all of them from the first of these on."""
        packets = container.demux(stream)
        try:
            ahead = list(islice(packets, count + MAX_REORDER))
        except av.FFmpegError as error:
            raise self.error(f"is damaged: reading stopped ({reason(error)})") from error
        return Ahead([p for p in ahead if p.size]), chain(ahead, packets)

    def seek(self, time: int, container: InputContainer, stream: VideoStream) -> None:
        try:
            container.seek(time, stream=stream)
        except av.FFmpegError as error:
            raise self.error(f"is damaged: seeking failed ({reason(error)})") from error

    def rewind(self, container: InputContainer, stream: VideoStream) -> None:
        begin = stream.index_entries[0].timestamp if self.is_indexed else stream.start_time or 0
        self.seek(begin, container, stream)

    def count_frames(self) -> int:
        """Exact: from index or packet headers where packets are frames, else by decoding all."""
        if self.is_indexed and self.is_numbered and self.info.num_frames:
            return self.info.num_frames
        with self.open() as (container, stream):
            if not self.is_numbered:
                return sum(1 for _ in self.decode(container, stream))
            try:
                return sum(p.size > 0 and not p.is_discard for p in container.demux(stream))
            except av.FFmpegError as error:
                raise self.error(f"is damaged: reading stopped ({reason(error)})") from error

    def _check_size(self, frame: VideoFrame) -> None:
        stored = getattr(self, "_stored_size", (frame.width, frame.height))
        if (frame.width, frame.height) != stored:
            raise self.error(
                f"the frame size changes from {stored[0]}x{stored[1]} to "
                f"{frame.width}x{frame.height} within the video"
            )

    def _describe(
        self, container: InputContainer, stream: VideoStream, first: VideoFrame
    ) -> VideoInfo:
        height, width = upright(np.empty((first.height, first.width), np.uint8), first).shape
        fps = stream.average_rate or stream.guessed_rate or Fraction(25)
        num_frames = stream.frames or None
        if stream.duration is not None and stream.time_base is not None:
            duration = float(stream.duration * stream.time_base)
        elif container.duration is not None:
            duration = container.duration / av.time_base
        else:
            duration = None if num_frames is None else num_frames / float(fps)
        aspect = Fraction(stream.sample_aspect_ratio or 1)
        return VideoInfo(
            path=self.path,
            width=width,
            height=height,
            fps=float(fps),
            num_frames=num_frames,
            duration=duration,
            rotation=-first.rotation % 360,
            pixel_aspect=1 / aspect if first.rotation % 180 else aspect,
        )
