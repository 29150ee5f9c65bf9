"""Reading a local video file: forward decoding, exact frame numbers, upright 8-bit RGB frames."""

import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from diffusion.data.rgb import frame_to_rgb, upright
from diffusion.utils.errors import UserError, VideoError

MAX_PIXELS = 2**26  # of one frame: 8192 x 8192
MAX_FRAMES = 200_000  # of one reading: two hours at 25 fps

# Containers that hold their own data. Playlists (hls, concat, dash, sdp) name other files or hosts,
# so a crafted file could make FFmpeg open them: they are not here. Audio containers are, so that the
# message says "no video stream".
FORMATS = (
    "mov,mp4,m4a,matroska,webm,avi,mpeg,mpegts,mpegvideo,m4v,h264,hevc,av1,obu,ivf,flv,ogg,asf,"
    "gif,apng,yuv4mpegpipe,nut,mxf,dv,mp3,wav,flac,aac"
)

# Codecs whose packets each show one frame, so that frames can be numbered without decoding. Not so:
# VP8 (hidden packets), MPEG-4 part 2 (packed B-frames).
ONE_FRAME_PER_PACKET = {"h264", "hevc", "av1", "vp9", "mjpeg", "prores", "ffv1", "png"}
MAX_REORDER = 64  # packets; the codecs above allow 16


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


class VideoReader:
    """One local video file.

        with VideoReader("clip.mp4") as reader:
            for frame in reader.frames(start=30, num_frames=8, frame_stride=2):  # (H, W, 3) uint8
                ...

    Opening decodes one frame, so that a file that cannot be read is refused at once. Each call of
    `frames` or `chunks` opens the file anew; a reader can be read several times.

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
        self.path = Path(path)
        self.max_pixels = max_pixels
        self.max_frames = max_frames
        self.threads = threads
        self._reading: Iterator[np.ndarray] | None = None
        self._check_file()
        with self._open() as (container, stream):
            first = next(self._decode(container, stream), None)
            if first is None:
                raise self._error("no frame of it can be decoded")
            self._stored_size = (first.width, first.height)
            self._numbered = stream.codec_context.name in ONE_FRAME_PER_PACKET
            self._numbered &= not first.interlaced_frame
            self.info = self._describe(container, stream, first)

    def __enter__(self) -> "VideoReader":
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

    def close(self) -> None:
        """End a reading in progress and let go of the file."""
        if self._reading is not None:
            self._reading.close()
            self._reading = None

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

        num_frames: None reads to the end. VideoError if the video has fewer.
        Starting a reading ends the reader's one before it.
        """
        if start < 0 or frame_stride < 1 or (num_frames is not None and num_frames < 1):
            raise UserError(
                f"start {start}, num_frames {num_frames}, frame_stride {frame_stride}: "
                "start is at least 0, the others at least 1"
            )
        if fps is not None and not 0 < fps < math.inf:
            raise UserError(f"fps {fps} must be a positive number")
        self.close()
        self._reading = self._read(start, num_frames, frame_stride, fps)
        return self._reading

    def chunks(
        self, size: int, start: int = 0, num_frames: int | None = None, frame_stride: int = 1
    ) -> Iterator[np.ndarray]:
        """Yield (f, H, W, 3) uint8 with f = size, the last one with what is left."""
        frames = self.frames(start, num_frames, frame_stride)
        while chunk := list(islice(frames, size)):
            yield np.stack(chunk)

    def count_frames(self) -> int:
        """The exact number of frames: by reading the file without decoding where that is exact."""
        with self._open() as (container, stream):
            if self._numbered:
                return sum(
                    packet.size > 0 and not packet.is_discard for packet in container.demux(stream)
                )
            return sum(1 for _ in self._decode(container, stream))

    def _check_file(self) -> None:
        try:
            mode = self.path.stat().st_mode
            if stat.S_ISDIR(mode):
                raise self._error("is a folder; pass a video file")
            if not stat.S_ISREG(mode):
                raise self._error("is not an ordinary file")
            with self.path.open("rb") as file:
                if not file.read(1):
                    raise self._error("is empty (0 bytes)")
        except FileNotFoundError as error:
            raise self._error("there is no such file (URLs are not opened)") from error
        except (OSError, ValueError) as error:
            if isinstance(error, VideoError):
                raise
            raise self._error(f"cannot be read ({_reason(error)})") from error

    @contextmanager
    def _open(self) -> Iterator[tuple[InputContainer, VideoStream]]:
        options = {
            "protocol_whitelist": "file",
            "format_whitelist": FORMATS,
            "max_pixels": str(self.max_pixels),
        }
        try:
            # An explicit protocol, so that no file name is taken for one.
            container = av.open("file:" + os.path.abspath(self.path), options=options)
        except (av.FFmpegError, UnicodeError) as error:
            raise self._error(
                f"is not a video file that can be read ({_reason(error)}); "
                "mp4, mov, mkv, webm, avi and mpg are"
            ) from error
        with container:
            stream = self._video_stream(container)
            stream.codec_context.options = {"max_pixels": str(self.max_pixels)}
            stream.codec_context.thread_count = self.threads
            stream.thread_type = "AUTO"
            yield container, stream

    def _video_stream(self, container: InputContainer) -> VideoStream:
        cover = av.stream.Disposition.attached_pic
        streams = [s for s in container.streams.video if not s.disposition & cover]
        if not streams:
            raise self._error("has no video stream")
        context = streams[0].codec_context
        if context is None:
            raise self._error("is compressed with a codec that this FFmpeg cannot decode")
        if context.width * context.height > self.max_pixels:
            raise self._error(
                f"frames of {context.width}x{context.height} exceed the limit of "
                f"{self.max_pixels} pixels; raise max_pixels if this is right"
            )
        return streams[0]

    def _decode(self, container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
        """Decoded frames from the container's position to its end, in the order of display."""
        try:
            for packet in container.demux(stream):
                yield from packet.decode()
        except av.FFmpegError as error:
            raise self._error(f"is damaged: decoding stopped ({_reason(error)})") from error
        if container.format.name.startswith("mov"):
            # FFmpeg ends a cut-off mp4 as if it were complete; its index knows better.
            end = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
            if end > (size := self.path.stat().st_size):
                raise self._error(
                    f"is cut off: {size} of at least {end} bytes are there; copy it again, "
                    "or pass num_frames to read only its beginning"
                )

    def _describe(
        self, container: InputContainer, stream: VideoStream, first: VideoFrame
    ) -> VideoInfo:
        height, width = upright(np.empty((first.height, first.width)), first).shape
        fps = stream.average_rate or stream.guessed_rate or Fraction(25)
        num_frames = stream.frames or None
        if stream.duration is not None and stream.time_base is not None:
            duration = float(stream.duration * stream.time_base)
        elif container.duration is not None:
            duration = container.duration / av.time_base
        else:
            duration = None if num_frames is None else num_frames / float(fps)
        aspect = Fraction(stream.sample_aspect_ratio or 1)
        turned = (width, height) != (first.width, first.height) or abs(first.rotation) == 90
        return VideoInfo(
            path=self.path,
            width=width,
            height=height,
            fps=float(fps),
            num_frames=num_frames,
            duration=duration,
            rotation=-first.rotation % 360,
            pixel_aspect=1 / aspect if turned else aspect,
        )

    def _read(
        self, start: int, num_frames: int | None, frame_stride: int, fps: float | None
    ) -> Iterator[np.ndarray]:
        self._check_count(start, num_frames, frame_stride, fps)
        given, seen = 0, start
        with self._open() as (container, stream):
            if fps is None:
                source = self._frames_from(start, container, stream)
            else:
                source = islice(self._at_rate(fps, container, stream), start, None)
            for seen, frame in enumerate(source, start + 1):
                if (seen - 1 - start) % frame_stride:
                    continue
                if given == self.max_frames:
                    raise self._error(f"more than max_frames = {self.max_frames} frames")
                yield self._to_rgb(frame)
                given += 1
                if given == num_frames:
                    return
        if given == 0 and num_frames is None:
            raise self._error(f"no frame left from start {start} on")
        if num_frames is not None:
            raise self._too_short(seen, start, num_frames, frame_stride)

    def _check_count(
        self, start: int, num_frames: int | None, frame_stride: int, fps: float | None
    ) -> None:
        """Refuse before decoding what the container already says cannot be had."""
        known = self.info.num_frames
        left = None if known is None or fps else max(0, -(-(known - start) // frame_stride))
        wanted = num_frames or left or 0
        if wanted > self.max_frames:
            raise self._error(
                f"{wanted} frames exceed the limit of {self.max_frames}; pass fewer num_frames "
                "or raise max_frames"
            )
        if left is not None and left < (num_frames or 1):
            exact = self.count_frames()
            if start + ((num_frames or 1) - 1) * frame_stride >= exact:
                raise self._too_short(exact, start, num_frames or 1, frame_stride)

    def _too_short(self, count: int, start: int, num_frames: int, stride: int) -> VideoError:
        if count <= start:
            return self._error(f"frame {start} asked for, but there are only {count}")
        left = -(-(count - start) // stride)
        return self._error(
            f"{num_frames} frames asked for (start {start}, stride {stride}), but the video has "
            f"{count} frames: pass num_frames {left} or fewer"
        )

    def _frames_from(
        self, start: int, container: InputContainer, stream: VideoStream
    ) -> Iterator[VideoFrame]:
        """Frames from number `start` on: by one seek if that is surely exact, else by decoding."""
        point = self._seek_point(start) if start and self._numbered else None
        if point is None:
            return islice(self._decode(container, stream), start, None)
        key_dts, pts = point
        container.seek(key_dts, stream=stream)
        frames = self._decode(container, stream)
        for frame in frames:
            if frame.pts == pts:
                return chain([frame], frames)
            if frame.pts is None or frame.pts > pts:
                break
        container.seek(stream.start_time or 0, stream=stream)
        return islice(self._decode(container, stream), start, None)

    def _seek_point(self, start: int) -> tuple[int, int] | None:
        """(decoding time of the nearest keyframe, time of frame `start`), from packet headers.

        None where frames cannot be numbered by their packets, or where there is nothing to skip.
        """
        times, keys = [], []
        with self._open() as (container, stream):
            for packet in container.demux(stream):
                if packet.size == 0 or packet.is_discard:
                    continue
                if packet.pts is None or packet.dts is None:
                    return None
                times.append(packet.pts)
                if packet.is_keyframe:
                    keys.append((packet.pts, packet.dts))
                if len(times) > start + MAX_REORDER:
                    break
        # A first packet that is no keyframe, or is shown after others, loses frames in decoding.
        if len(times) <= start or not keys or keys[0][0] != times[0] or times[0] != min(times):
            return None
        if len(set(times)) < len(times):
            return None
        pts = sorted(times)[start]
        key_pts, key_dts = max(key for key in keys if key[0] <= pts)
        return None if key_pts == times[0] else (key_dts, pts)

    def _at_rate(
        self, fps: float, container: InputContainer, stream: VideoStream
    ) -> Iterator[VideoFrame]:
        """Frame k is the one on screen at k / fps seconds after the first."""
        shown, k, origin = None, 0, None
        length = 1 / self.info.fps
        for number, frame in enumerate(self._decode(container, stream)):
            time = number / self.info.fps if frame.time is None else frame.time
            origin = time if origin is None else origin
            while shown is not None and k / fps < time - origin - 1e-6:
                yield shown
                k += 1
            shown, end = frame, time - origin + length
        while shown is not None and k / fps < end - 1e-6:
            yield shown
            k += 1

    def _to_rgb(self, frame: VideoFrame) -> np.ndarray:
        """Any pixel format -> (H, W, 3) uint8, full range, upright."""
        if (frame.width, frame.height) != self._stored_size:
            raise self._error(
                "the frame size changes from {}x{}".format(*self._stored_size)
                + f" to {frame.width}x{frame.height} within the video"
            )
        return frame_to_rgb(frame)

    def _error(self, problem: str) -> VideoError:
        name = str(self.path)
        return VideoError(name if name.isprintable() else ascii(name), problem)


def _reason(error: Exception) -> str:
    """What FFmpeg or the system says, as one line without the path."""
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(text.split())
