"""Writing a video: H.264 in mp4, frame by frame, with the final name only when it is complete."""

import os
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace
from torch import Tensor

from diffusion.data.transforms import to_uint8
from diffusion.data.video.container import reason
from diffusion.data.video.rgb import EXACT, untagged_matrix
from diffusion.utils.errors import UserError, VideoError

BT709 = 1  # primaries, transfer and matrix in ITU-T H.273
SMPTE170M = 6  # the matrix of BT.601


class VideoWriter:
    """An mp4 file of exactly the frames' size: H.264, limited range, tagged colours.

        with VideoWriter("out.mp4", fps=24) as writer:
            for chunk in chunks:  # (C, f, H, W) float in [-1, 1], or (f, H, W, 3) uint8
                writer.write(chunk)

    Frames go to a temporary file beside `path`, renamed at the end of the `with` block; after an
    exception it is removed and an older `path` stays as it was.

    Frames with even sides are written as yuv420p, which every player shows. That format stores one
    colour for 2x2 pixels, so an odd width or height cannot be: such frames are written as yuv444p
    (profile High 4:4:4 Predictive), which VLC and mpv show, but not every browser or device.

    crf: quality, 0 (lossless) to 51; 17 is visually lossless.
    """

    def __init__(self, path: str | os.PathLike[str], fps: float | Fraction, *, crf: int = 17):
        self.path = Path(path)
        if not 0 < fps <= 1000:
            raise UserError(f"{self.path}: fps {fps} must lie between 0 and 1000")
        if not 0 <= crf <= 51:
            raise UserError(f"{self.path}: crf {crf} must lie between 0 and 51")
        # 29.97002997 is 30000/1001.
        self.fps = Fraction(fps).limit_denominator(1001)
        self.crf = crf
        self.size: tuple[int, int] | None = None
        self.num_frames = 0
        self._partial = self.path.with_name(f".{self.path.name[:200]}.{os.getpid()}.partial")
        try:
            if self.path.is_dir():
                raise IsADirectoryError("it is a folder")
            self._container = av.open("file:" + os.path.abspath(self._partial), "w", format="mp4")
            # FFmpeg creates the file with the first frame; a folder that refuses is known now.
            self._partial.touch()
        except (av.FFmpegError, OSError, ValueError) as error:
            raise self._error(error) from error

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            self._discard()

    def write(self, frames: np.ndarray | Tensor) -> None:
        """Append (F, H, W, 3) uint8 or (3, F, H, W) float in [-1, 1]."""
        if isinstance(frames, Tensor):
            frames = to_uint8(frames) if frames.is_floating_point() else frames.cpu().numpy()
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
            raise ValueError(
                f"frames of shape {frames.shape}, {frames.dtype}: expected (F, H, W, 3) uint8 "
                "or a float tensor (3, F, H, W)"
            )
        try:
            for frame in frames:
                self._encode(np.ascontiguousarray(frame))
        except (av.FFmpegError, OSError) as error:
            self._discard()
            raise self._error(error) from error

    def close(self) -> None:
        """Finish the file and give it its name."""
        if self.num_frames == 0:
            self._discard()
            raise VideoError(self.path, "no frame was given to write")
        try:
            self._container.mux(self._stream.encode(None))
            self._container.close()
            self._check_complete()
            self._partial.replace(self.path)
        except (av.FFmpegError, OSError) as error:
            self._discard()
            raise self._error(error) from error

    def _encode(self, frame: np.ndarray) -> None:
        """frame: (H, W, 3) uint8."""
        height, width, _ = frame.shape
        if self.size is None:
            self._begin(width, height)
        elif self.size != (width, height):
            raise ValueError(f"a frame of {width}x{height} after frames of {self.size}")
        picture = VideoFrame.from_ndarray(frame, format="rgb24").reformat(
            format=self._stream.pix_fmt,
            src_color_range=ColorRange.JPEG,
            dst_colorspace=self._matrix,
            dst_color_range=ColorRange.MPEG,
            interpolation=EXACT,
        )
        picture.pts = self.num_frames
        picture.time_base = 1 / self.fps
        self._container.mux(self._stream.encode(picture))
        self.num_frames += 1

    def _begin(self, width: int, height: int) -> None:
        self.size = (width, height)
        # The matrix that players assume by size, so that those that ignore the tags are right too.
        self._matrix = untagged_matrix(width, height)
        options = {"crf": str(self.crf), "preset": "medium"}
        self._stream = self._container.add_stream("libx264", rate=self.fps, options=options)
        self._stream.width, self._stream.height = width, height
        self._stream.pix_fmt = "yuv444p" if width % 2 or height % 2 else "yuv420p"
        context = self._stream.codec_context
        context.time_base = 1 / self.fps
        context.color_range = ColorRange.MPEG
        context.colorspace = BT709 if self._matrix == Colorspace.ITU709 else SMPTE170M
        context.color_primaries = context.color_trc = BT709

    def _check_complete(self) -> None:
        """FFmpeg can lose a write error at the end; the file itself cannot."""
        with av.open("file:" + os.path.abspath(self._partial)) as container:
            stream = container.streams.video[0]
            end = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
            if stream.frames != self.num_frames or end > self._partial.stat().st_size:
                raise OSError("not all frames reached the disk; is it full?")

    def _discard(self) -> None:
        with suppress(av.FFmpegError, OSError):  # the file goes anyway
            self._container.close()
        self._partial.unlink(missing_ok=True)

    def _error(self, error: Exception) -> VideoError:
        return VideoError(
            self.path,
            f"cannot be written ({reason(error)}); free some space or choose another folder",
        )
