"""Training clips from small data sets: frames decoded once, batches as a function of the step."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffusion.data.training.bad_videos import BadVideos, locked
from diffusion.data.training.crops import place_window, to_clip
from diffusion.data.video.video_io import open_video
from diffusion.data.video_list import PICTURE_SUFFIXES, VIDEO_SUFFIXES, list_videos
from diffusion.utils.errors import VideoError
from diffusion.utils.files import make_folder, replacing

__all__ = [
    "PICTURE_SUFFIXES",
    "VIDEO_SUFFIXES",
    "Batch",
    "FrameCache",
    "RandomClips",
    "list_videos",
    "read_first_frames",
    "seeded",
]


@dataclass(frozen=True)
class Batch:
    """video: (B, 3, F, H, W) float32 RGB in [-1, 1]; sources: the B paths."""

    video: Tensor
    sources: list[str]

    def __len__(self) -> int:
        return len(self.sources)

    def to(self, device: str | torch.device) -> "Batch":
        return Batch(self.video.to(device), self.sources)


def seeded(*words: int) -> np.random.Generator:
    """Randomness that is a function of (seed, step, sample, ...): a resumed run draws the same."""
    return np.random.default_rng(np.random.SeedSequence(words))


def global_samples(batch_size: int, rank: int, world_size: int) -> range:
    """The places of a process's samples in the batch of all processes together."""
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is not below world_size {world_size}")
    return range(rank * batch_size, (rank + 1) * batch_size)


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
            stat = path.stat()
        except OSError as error:
            raise VideoError(path, str(error.strerror)) from error
        key = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns} {max_frames}"
        target = cache_dir / (hashlib.sha256(key.encode()).hexdigest()[:24] + ".npy")
        if not target.exists():
            frames = read_first_frames(path, max_frames)
            with replacing(target) as partial, partial.open("wb") as file:
                np.save(file, frames)
        return target


class RandomClips:
    """Random clips as a function of the step: `clips(step) -> Batch`.

    A clip is a random piece of `num_frames` frames and a random crop, between `size` and
    `max_downscale * size` pixels wide, resized to `size` with antialiasing; half are mirrored.
    Still pictures and videos that are too short repeat their last frame; frames smaller than
    `size` are enlarged. For large data sets see VideoClips.

    max_frames: of each video, kept decoded in `cache_dir`.
    max_bad_share: training stops when more of the videos than this cannot be read.
    rank, world_size: of this process among those that draw one batch together.
    bad_list: file that lists what cannot be read.
    """

    def __init__(
        self,
        *,
        video_list: Sequence[str],
        cache_dir: str,
        batch_size: int,
        size: int,
        num_frames: int = 1,
        frame_strides: Sequence[int] = (1,),
        max_downscale: float = 2.0,
        max_frames: int = 96,
        max_bad_share: float = 0.5,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        bad_list: Path | None = None,
    ):
        paths = list_videos(video_list)
        bad = BadVideos(paths, bad_list, max_bad_share)
        self.cache = FrameCache(paths, cache_dir, max_frames, bad)
        self.samples = global_samples(batch_size, rank, world_size)
        self.size = (size, size)
        self.num_frames = num_frames
        self.frame_strides = tuple(frame_strides)
        self.max_downscale = max_downscale
        self.seed = seed

    def __call__(self, step: int) -> Batch:
        clips, sources = zip(*(self.sample(step, i) for i in self.samples), strict=True)
        return Batch(torch.stack(clips), list(sources))

    def sample(self, step: int, i: int) -> tuple[Tensor, str]:
        rng = seeded(self.seed, 0, step, i)
        chosen = int(rng.integers(len(self.cache)))
        return self.clip(self.cache[chosen], rng), self.cache.paths[chosen]

    def clip(self, frames: np.ndarray, rng: np.random.Generator) -> Tensor:
        """(F, H, W, 3) uint8 -> (3, num_frames, size, size) in [-1, 1]."""
        total = len(frames)
        stride = int(rng.choice(self.frame_strides))
        start = int(rng.integers(max(1, total - (self.num_frames - 1) * stride)))
        index = np.minimum(start + stride * np.arange(self.num_frames), total - 1)
        zoom = rng.uniform(1.0, self.max_downscale)
        window = place_window(frames.shape[1:3], self.size, zoom, rng)
        return to_clip(window.cut(frames)[index], self.size, flip=rng.random() < 0.5)
