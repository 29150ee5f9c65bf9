"""One local video file: opened safely, described, decoded forward."""

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from diffusion.data.video.packets import (
    MAX_REORDER,
    ONE_FRAME_PER_PACKET,
    Ahead,
    has_full_index,
)
from diffusion.data.video.rgb import upright
from diffusion.utils.errors import VideoError

# Containers that hold their own data. Playlists (hls, concat, dash, sdp) name other files or hosts,
# so a crafted file could make FFmpeg open them: they are not here. Audio containers are, so that
# the message says "no video stream".
FORMATS = (
    "mov,mp4,m4a,matroska,webm,avi,mpeg,mpegts,mpegvideo,m4v,h264,hevc,av1,obu,ivf,flv,ogg,asf,"
    "gif,apng,yuv4mpegpipe,nut,mxf,dv,mp3,wav,flac,aac"
)

Opened = tuple[InputContainer, VideoStream]


@dataclass(frozen=True)
class VideoInfo:
    """What is known before decoding all of a video.

    width, height: of the frames that the reader yields, turned upright.
    fps: average frame rate.
    num_frames: as the container says, None where it does not; `VideoReader.count_frames` is exact.
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
        self._check_ordinary()
        self._kept: Opened | None = None
        with ExitStack() as stack:
            container, stream = self._open()
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
        name = str(self.path)
        return VideoError(name if name.isprintable() else ascii(name), problem)

    @contextmanager
    def open(self) -> Iterator[Opened]:
        """The file at its beginning, until the end of the block."""
        kept, self._kept = self._kept, None
        container, stream = kept or self._open()
        with container:
            yield container, stream

    def close(self) -> None:
        if self._kept is not None:
            self._kept[0].close()
            self._kept = None

    def _open(self) -> Opened:
        options = {
            "protocol_whitelist": "file",
            "format_whitelist": FORMATS,
            "max_pixels": str(self.max_pixels),
        }
        try:
            # An explicit protocol, so that no file name is taken for one.
            container = av.open("file:" + os.path.abspath(self.path), options=options)
        except (av.FFmpegError, UnicodeError) as error:
            raise self.error(
                f"is not a video file that can be read ({reason(error)}); "
                "mp4, mov, mkv, webm, avi and mpg are"
            ) from error
        with ExitStack() as stack:
            stack.enter_context(container)
            stream = self._video_stream(container)
            stream.codec_context.options = {"max_pixels": str(self.max_pixels)}
            stream.codec_context.thread_count = self.threads
            stream.thread_type = "AUTO"
            stack.pop_all()
        return container, stream

    def decode(
        self,
        container: InputContainer,
        stream: VideoStream,
        packets: Iterable[Packet] | None = None,
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
                early = None not in (last, packet.pts) and packet.pts < last
                skip = early and needless((packet.pts,))
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
        packets: Iterator[Packet],
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
    ) -> tuple[Ahead, Iterator[Packet]]:
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

    def _check_ordinary(self) -> None:
        """Not a folder, pipe or device, not empty, and readable."""
        try:
            mode = self.path.stat().st_mode
            if stat.S_ISDIR(mode):
                raise self.error("is a folder; pass a video file")
            if not stat.S_ISREG(mode):
                raise self.error("is not an ordinary file")
            with self.path.open("rb") as file:
                if not file.read(1):
                    raise self.error("is empty (0 bytes)")
        except VideoError:
            raise
        except FileNotFoundError as error:
            raise self.error("there is no such file (URLs are not opened)") from error
        except (OSError, ValueError) as error:
            raise self.error(f"cannot be read ({reason(error)})") from error

    def _check_size(self, frame: VideoFrame) -> None:
        stored = getattr(self, "_stored_size", (frame.width, frame.height))
        if (frame.width, frame.height) != stored:
            raise self.error(
                f"the frame size changes from {stored[0]}x{stored[1]} to "
                f"{frame.width}x{frame.height} within the video"
            )

    def _video_stream(self, container: InputContainer) -> VideoStream:
        cover = av.stream.Disposition.attached_pic
        streams = [s for s in container.streams.video if not s.disposition & cover]
        if not streams:
            raise self.error("has no video stream")
        context = streams[0].codec_context
        if context is None:
            raise self.error("is compressed with a codec that this FFmpeg cannot decode")
        if context.width * context.height > self.max_pixels:
            raise self.error(
                f"frames of {context.width}x{context.height} exceed the limit of "
                f"{self.max_pixels} pixels; raise max_pixels if this is right"
            )
        return streams[0]

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


def reason(error: Exception) -> str:
    """What FFmpeg or the system says, as one line without the path."""
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(text.split())
