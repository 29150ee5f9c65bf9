"""Pictures as videos: a still is one frame, a folder of numbered pictures is a clip."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from diffusion.data.video.video_file import VideoInfo
from diffusion.data.video.video_reader import MAX_PIXELS
from diffusion.data.video_list import PICTURE_SUFFIXES
from diffusion.utils.errors import VideoError

FOLDER_FPS = 25.0  # pictures do not say


class PictureReader:
    """A picture, or a folder of pictures in the order of their numbers, read as a VideoReader is.

    Pictures are turned as their EXIF data says; alpha is dropped.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self._files = [self.path]
        if self.path.is_dir():
            files = (p for p in self.path.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES)
            self._files = sorted(files, key=_by_number)
        if not self._files:
            raise VideoError(self.path, "is a folder that holds no pictures")
        height, width, _ = read_picture(self._files[0]).shape
        self.info = VideoInfo(
            path=self.path,
            width=width,
            height=height,
            fps=FOLDER_FPS,
            num_frames=len(self._files),
            duration=len(self._files) / FOLDER_FPS,
        )

    def __enter__(self) -> "PictureReader":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def count_frames(self) -> int:
        return len(self._files)

    def frames(
        self, start: int = 0, num_frames: int | None = None, frame_stride: int = 1
    ) -> Iterator[np.ndarray]:
        """Yield (H, W, 3) uint8 RGB frames `start`, `start + frame_stride`, ..."""
        wanted = self._files[start::frame_stride][:num_frames]
        if len(wanted) < (num_frames or 1):
            raise VideoError(
                self.path,
                f"has {len(self._files)} pictures, too few for {num_frames or 1} frames from "
                f"{start} with stride {frame_stride}",
            )
        for file in wanted:
            frame = read_picture(file)
            if frame.shape[:2] != (self.info.height, self.info.width):
                raise VideoError(
                    file,
                    f"is {frame.shape[1]}x{frame.shape[0]}, the first picture of the folder "
                    f"{self.info.width}x{self.info.height}; the frames of a clip have one size",
                )
            yield frame


def read_picture(path: str | os.PathLike[str]) -> np.ndarray:
    """(H, W, 3) uint8 RGB, upright."""
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise VideoError(
                    path, f"{picture.width}x{picture.height} exceed {MAX_PIXELS} pixels"
                )
            return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise VideoError(path, "is not a picture that can be read") from error


def _by_number(path: Path) -> tuple[int, str]:
    """2.png comes before 10.png."""
    digits = re.findall(r"\d+", path.stem)
    return (int(digits[-1]) if digits else 0, path.name)
