"""Videos decoded once: for small data sets and few cores."""

import hashlib
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from diffusion.data.training.bad_videos import BadVideos
from diffusion.data.video.open_video import open_video
from diffusion.utils.errors import VideoError
from diffusion.utils.files import file_identity, locked, make_folder, replacing


def read_first_frames(path: Path, max_frames: int) -> np.ndarray:
    """(F, H, W, 3) uint8 RGB of a video or folder of pictures, or F = 1 of a still picture."""
    with open_video(path) as reader:
        return np.stack(list(islice(reader.frames(), max_frames)))


class FrameCache:
    """The first frames of every video, decoded once into memory-mapped uint8 files.

    For small data sets and few cores: a step then costs no decoding, and several trainings share
    one cache. Videos that cannot be read are left out.
    """

    def __init__(
        self, paths: Sequence[Path], cache_dir: str | Path, max_frames: int, bad: BadVideos
    ):
        self._files: list[Path] = []
        self.paths: list[str] = []
        cache_dir = make_folder(cache_dir)
        failed: dict[Path, VideoError] = {}
        with locked(cache_dir / "frames.lock"):
            for path in paths:
                try:
                    self._files.append(self._cached(path, cache_dir, max_frames))
                    self.paths.append(str(path))
                except VideoError as error:
                    failed[path] = error
        bad.add_all(failed)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> np.ndarray:
        """(F, H, W, 3) uint8; mapped anew every time, so that worker processes copy nothing."""
        return np.load(self._files[i], mmap_mode="r")

    @staticmethod
    def _cached(path: Path, cache_dir: Path, max_frames: int) -> Path:
        try:
            key = " ".join(map(str, [*file_identity(path), max_frames]))
        except OSError as error:
            raise VideoError(path, str(error.strerror)) from error
        target = cache_dir / (hashlib.sha256(key.encode()).hexdigest()[:24] + ".npy")
        if not target.exists():
            frames = read_first_frames(path, max_frames)
            with replacing(target) as partial, partial.open("wb") as file:
                np.save(file, frames)
        return target
