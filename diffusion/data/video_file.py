"""One local video file: opened safely, decoded forward, its frames numbered exactly."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from diffusion.data.rgb import upright
from diffusion.utils.errors import VideoError

# Containers that hold their own data. Playlists (hls, concat, dash, sdp) name other files or hosts,
# so a crafted file could make FFmpeg open them: they are not here. Audio containers are, so that
# the message says "no video stream".
FORMATS = (
    "mov,mp4,m4a,matroska,webm,avi,mpeg,mpegts,mpegvideo,m4v,h264,hevc,av1,obu,ivf,flv,ogg,asf,"
    "gif,apng,yuv4mpegpipe,nut,mxf,dv,mp3,wav,flac,aac"
)

# Codecs whose packets each show one frame, so that frames can be numbered without decoding. Not so:
# VP8 (hidden packets), MPEG-4 part 2 (packed B-frames).
ONE_FRAME_PER_PACKET = {"h264", "hevc", "av1", "libdav1d", "vp9", "mjpeg", "prores", "ffv1", "png"}
SEEKABLE = ("mov", "matroska")  # have an index; MPEG-TS lands inside a group of pictures
MAX_REORDER = 64  # packets; the codecs above allow 16

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

    max_pixels: largest frame, checked before anything is decoded.
    threads: of the decoder; 0 lets FFmpeg choose.
    """

    def __init__(self, path: str | os.PathLike[str], max_pixels: int, threads: int):
        self.path = Path(path)
        self.max_pixels = max_pixels
        self.threads = threads
        self._check_ordinary()
        with self.open() as (container, stream):
            first = next(self.decode(container, stream), None)
            if first is None:
                raise self.error("no frame of it can be decoded")
            self._stored_size = (first.width, first.height)
            codec = stream.codec_context.name
            self._numbered = codec in ONE_FRAME_PER_PACKET and not first.interlaced_frame
            self.info = self._describe(container, stream, first)

    def error(self, problem: str) -> VideoError:
        name = str(self.path)
        return VideoError(name if name.isprintable() else ascii(name), problem)

    @contextmanager
    def open(self) -> Iterator[Opened]:
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
        with container:
            stream = self._video_stream(container)
            stream.codec_context.options = {"max_pixels": str(self.max_pixels)}
            stream.codec_context.thread_count = self.threads
            stream.thread_type = "AUTO"
            yield container, stream

    def decode(self, container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
        """Frames from the container's position to its end, in the order of display."""
        try:
            for packet in container.demux(stream):
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

    def decode_from(
        self, start: int, container: InputContainer, stream: VideoStream
    ) -> Iterator[VideoFrame]:
        """Frames from number `start` on: by one seek if that is surely exact, else by decoding."""
        point = self._seek_point(start) if start and self._numbered else None
        if point is None:
            return islice(self.decode(container, stream), start, None)
        key_pts, pts = point
        container.seek(key_pts, stream=stream)
        frames = self.decode(container, stream)
        for frame in frames:
            if frame.pts == pts:
                return chain([frame], frames)
            if frame.pts is None or frame.pts > pts:
                break
        container.seek(stream.start_time or 0, stream=stream)
        return islice(self.decode(container, stream), start, None)

    def count_frames(self) -> int:
        """Exact: from packet headers where packets are frames, else by decoding all."""
        with self.open() as (container, stream):
            if not self._numbered:
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

    def _seek_point(self, start: int) -> tuple[int, int] | None:
        """(time of the nearest keyframe before, time of frame `start`), from packet headers.

        None where frames cannot be numbered by their packets, or where there is nothing to skip.
        """
        times, keys = [], []
        with self.open() as (container, stream):
            if not container.format.name.startswith(SEEKABLE):
                return None
            for packet in container.demux(stream):
                if packet.size == 0 or packet.is_discard:
                    continue
                if packet.pts is None or packet.dts is None:
                    return None
                times.append(packet.pts)
                if packet.is_keyframe:
                    keys.append(packet.pts)
                if len(times) > start + MAX_REORDER:
                    break
        if len(times) <= start or len(set(times)) < len(times):
            return None
        # A first packet that is no keyframe, or is shown after others, loses frames in decoding.
        if not keys or keys[0] != times[0] or times[0] != min(times):
            return None
        pts = sorted(times)[start]
        key_pts = max(key for key in keys if key <= pts)
        return None if key_pts == times[0] else (key_pts, pts)


def reason(error: Exception) -> str:
    """What FFmpeg or the system says, as one line without the path."""
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(text.split())
