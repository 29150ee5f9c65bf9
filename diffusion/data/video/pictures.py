"""Pictures as videos: a still is one frame, a folder of numbered pictures is a clip."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from diffusion.data.video.container import video_error
from diffusion.data.video.frame_reader import (
    MAX_PIXELS,
    FrameReader,
    VideoInfo,
    check_reading,
    too_few,
)
from diffusion.data.video_list import PICTURE_SUFFIXES, is_frame_folder

FOLDER_FPS = 25.0  # pictures do not say


class PictureReader(FrameReader):
    """A picture, or a folder of pictures in the order of their numbers.

    Pictures are turned as their EXIF data says; alpha is dropped.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self._files = numbered_pictures(self.path) if self.path.is_dir() else [self.path]
        height, width, _ = read_picture(self._files[0]).shape
        self.info = VideoInfo(
            path=self.path,
            width=width,
            height=height,
            fps=FOLDER_FPS,
            num_frames=len(self._files),
            duration=len(self._files) / FOLDER_FPS,
        )

    def count_frames(self) -> int:
        return len(self._files)

    def frames(
        self,
        start: int = 0,
        num_frames: int | None = None,
        frame_stride: int = 1,
        fps: float | None = None,
    ) -> Iterator[np.ndarray]:
        check_reading(start, num_frames, frame_stride)
        if fps is not None:
            raise video_error(self.path, "is no video: pictures have no times to resample by")
        return self._read(start, num_frames, frame_stride)

    def _read(self, start: int, num_frames: int | None, frame_stride: int) -> Iterator[np.ndarray]:
        wanted = self._files[start::frame_stride][:num_frames]
        if len(wanted) < (num_frames or 1):
            problem = (len(self._files), start, num_frames or 1, frame_stride)
            raise video_error(self.path, too_few(*problem, called="pictures"))
        for file in wanted:
            frame = read_picture(file)
            if frame.shape[:2] != (self.info.height, self.info.width):
                raise video_error(
                    file,
                    f"is {frame.shape[1]}x{frame.shape[0]}, the first picture of the folder "
                    f"{self.info.width}x{self.info.height}; the frames of a clip have one size",
                )
            yield frame


def numbered_pictures(folder: Path) -> list[Path]:
    """The pictures of a folder that is one clip, in the order of their numbers."""
    try:
        files = [path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES]
    except OSError as error:
        raise video_error(folder, f"the folder cannot be read ({error.strerror})") from error
    if not files:
        raise video_error(folder, "is a folder that holds no pictures; pass a video file")
    if len(files) > 1 and not is_frame_folder(path.name for path in files):
        raise video_error(
            folder,
            f"is a folder whose {len(files)} pictures are not numbered in equal steps, as the "
            "frames of a clip are; pass one of them",
        )
    return sorted(files, key=_number)


def read_picture(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB, upright."""
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise video_error(
                    path, f"{picture.width}x{picture.height} exceed {MAX_PIXELS} pixels"
                )
            return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    except FileNotFoundError as error:
        raise video_error(path, "there is no such file (URLs are not opened)") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise video_error(path, "is not a picture that can be read") from error


def _number(path: Path) -> int:
    """2.png comes before 10.png."""
    digits = re.findall(r"\d+", path.stem)
    return int(digits[-1]) if digits else 0
