"""Opening a video file safely: a local, ordinary file of a known format, of bounded size."""

import os
import stat
from contextlib import ExitStack
from pathlib import Path

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from diffusion.utils.errors import VideoError, on_one_line

# Containers that hold their own data. Playlists (hls, concat, dash, sdp) name other files or hosts,
# so a crafted file could make FFmpeg open them: they are not here. Audio containers are, so that
# the message says "no video stream".
FORMATS = (
    "mov,mp4,m4a,matroska,webm,avi,mpeg,mpegts,mpegvideo,m4v,h264,hevc,av1,obu,ivf,flv,ogg,asf,"
    "gif,apng,yuv4mpegpipe,nut,mxf,dv,mp3,wav,flac,aac"
)

Opened = tuple[InputContainer, VideoStream]


def open_container(path: Path, max_pixels: int, threads: int) -> Opened:
    """The file and its first video stream, at the beginning.

    max_pixels: largest frame, checked before anything is decoded.
    threads: of the decoder; 0 lets FFmpeg choose.
    """
    options = {
        "protocol_whitelist": "file",
        "format_whitelist": FORMATS,
        "max_pixels": str(max_pixels),
    }
    try:
        # An explicit protocol, so that no file name is taken for one.
        container = av.open("file:" + os.path.abspath(path), options=options)
    except (av.FFmpegError, UnicodeError) as error:
        raise video_error(
            path,
            f"is not a video file that can be read ({reason(error)}); "
            "mp4, mov, mkv, webm, avi and mpg are",
        ) from error
    with ExitStack() as stack:
        stack.enter_context(container)
        stream = _video_stream(path, container, max_pixels)
        stream.codec_context.options = {"max_pixels": str(max_pixels)}
        stream.codec_context.thread_count = threads
        stream.thread_type = "AUTO"
        stack.pop_all()
    return container, stream


def check_ordinary(path: Path) -> None:
    """Not a folder, pipe or device, not empty, and readable."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise video_error(path, "is a folder; pass a video file")
        if not stat.S_ISREG(mode):
            raise video_error(path, "is not an ordinary file")
        with path.open("rb") as file:
            if not file.read(1):
                raise video_error(path, "is empty (0 bytes)")
    except VideoError:
        raise
    except FileNotFoundError as error:
        raise video_error(path, "there is no such file (URLs are not opened)") from error
    except (OSError, ValueError) as error:
        raise video_error(path, f"cannot be read ({reason(error)})") from error


def video_error(path: Path, problem: str) -> VideoError:
    """Names the file as one line of text, whatever its name holds."""
    name = str(path)
    return VideoError(name if name.isprintable() else ascii(name), problem)


def reason(error: Exception) -> str:
    """What FFmpeg or the system says, as one line without the path."""
    text = getattr(error, "strerror", None) or str(error)
    return on_one_line(text)


def _video_stream(path: Path, container: InputContainer, max_pixels: int) -> VideoStream:
    cover = Disposition.attached_pic
    streams = [s for s in container.streams.video if not s.disposition & cover]
    if not streams:
        raise video_error(path, "has no video stream")
    context = streams[0].codec_context
    if context is None:
        raise video_error(path, "is compressed with a codec that this FFmpeg cannot decode")
    if context.width * context.height > max_pixels:
        raise video_error(
            path,
            f"frames of {context.width}x{context.height} exceed the limit of {max_pixels} pixels; "
            "raise max_pixels if this is right",
        )
    return streams[0]
