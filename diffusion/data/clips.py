"""Training clips: which videos, which pieces of them, and batches as a function of the step."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor

from diffusion.data.transforms import crop_to_multiple, resize_short_edge, to_float, to_uint8
from diffusion.data.video_io import VideoReader
from diffusion.utils.errors import UserError, VideoError
from diffusion.utils.files import make_folder, replacing

log = logging.getLogger(__name__)

PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
VIDEO_SUFFIXES = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg"}


@dataclass(frozen=True)
class Batch:
    """video: (B, 3, F, H, W) float32 RGB in [-1, 1]; sources: the B paths."""

    video: Tensor
    sources: list[str]

    def to(self, device: str | torch.device) -> "Batch":
        return Batch(self.video.to(device), self.sources)


def list_videos(entries: Sequence[str] | str) -> list[Path]:
    """Entries of `video_list`: a video, a folder of videos, or a text file with a path per line.

    Paths in a text file resolve against its folder, then the working directory. A single entry
    need not stand in a list.
    """
    entries = [entries] if isinstance(entries, str) else entries
    paths: list[Path] = []
    for entry in map(Path, entries):
        if entry.is_dir():
            known = VIDEO_SUFFIXES | PICTURE_SUFFIXES
            paths += sorted(p for p in entry.iterdir() if p.suffix.lower() in known)
        elif entry.suffix == ".txt" and entry.is_file():
            lines = [line.strip() for line in entry.read_text().splitlines()]
            named = [Path(line) for line in lines if line and not line.startswith("#")]
            paths += [p if not (entry.parent / p).exists() else entry.parent / p for p in named]
        elif entry.is_file():
            paths.append(entry)
        else:
            raise UserError(f"video_list: {entry} does not exist")
    if not paths:
        raise UserError("video_list is empty; put paths of videos, folders or .txt lists into it")
    return paths


def seeded(*words: int) -> np.random.Generator:
    """Randomness that is a function of (seed, rank, step, ...): a resumed run draws the same."""
    return np.random.default_rng(np.random.SeedSequence(words))


def read_first_frames(path: Path, max_frames: int) -> np.ndarray:
    """(F, H, W, 3) uint8 RGB of a video, or F = 1 of a still picture."""
    if path.suffix.lower() in PICTURE_SUFFIXES:
        try:
            with Image.open(path) as picture:
                return np.asarray(picture.convert("RGB"))[None]
        except OSError as error:
            raise VideoError(path, "is not a picture that can be read") from error
    with VideoReader(path) as reader:
        return next(reader.chunks(max_frames))


def random_segment(
    frames: np.ndarray, num_frames: int, short_edge: tuple[int, int], rng: np.random.Generator
) -> np.ndarray:
    """(F, H, W, 3) uint8 -> (num_frames, h, w, 3): consecutive frames, made smaller at random.

    The short edge lies between the two given, but is never enlarged beyond the smaller of them;
    sides are cut to multiples of 32. A clip that is too short repeats its last frame.
    """
    total, height, width, _ = frames.shape
    start = int(rng.integers(max(1, total - num_frames + 1)))
    piece = frames[np.minimum(start + np.arange(num_frames), total - 1)]
    low, high = short_edge
    size = int(rng.integers(low, max(low, min(high, height, width)) + 1))
    video = crop_to_multiple(resize_short_edge(to_float(piece), size), 32)
    return to_uint8(video)


class FrameCache:
    """The first frames of every video, decoded once into memory-mapped uint8 files.

    For small data sets and few cores: a step then costs no decoding, and several trainings share
    one cache. Videos that cannot be read are named once in the log and left out.
    """

    def __init__(self, paths: Sequence[Path], cache_dir: str | Path, max_frames: int):
        self.videos: list[np.ndarray] = []  # (F, H, W, 3) uint8 each
        self.paths: list[str] = []
        cache_dir = make_folder(cache_dir)
        for path in paths:
            try:
                self.videos.append(self._frames(path, cache_dir, max_frames))
                self.paths.append(str(path))
            except VideoError as error:
                log.warning("left out: %s", error)
        if not self.videos:
            raise UserError(f"none of the {len(paths)} videos of video_list can be read")

    @staticmethod
    def _frames(path: Path, cache_dir: Path, max_frames: int) -> np.ndarray:
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
        return np.load(target, mmap_mode="r")


class RandomClips:
    """Random clips as a function of the step: `clips(step) -> Batch`.

    A clip is a random piece of `num_frames` frames and a random crop, between `size` and
    `max_downscale * size` pixels wide, resized to `size` with antialiasing; half are mirrored.
    Still pictures and videos that are too short repeat their last frame.
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
        seed: int = 0,
        rank: int = 0,
    ):
        self.cache = FrameCache(list_videos(video_list), cache_dir, max_frames)
        self.batch_size = batch_size
        self.size = size
        self.num_frames = num_frames
        self.frame_strides = tuple(frame_strides)
        self.max_downscale = max_downscale
        self.seed, self.rank = seed, rank

    def __call__(self, step: int) -> Batch:
        rng = seeded(self.seed, self.rank, step)
        chosen = rng.integers(len(self.cache.videos), size=self.batch_size)
        clips = [self.crop(self.cache.videos[i], rng) for i in chosen]
        return Batch(torch.stack(clips), [self.cache.paths[i] for i in chosen])

    def crop(self, frames: np.ndarray, rng: np.random.Generator) -> Tensor:
        """(F, H, W, 3) uint8 -> (3, num_frames, size, size) in [-1, 1]."""
        total, height, width, _ = frames.shape
        stride = int(rng.choice(self.frame_strides))
        start = int(rng.integers(max(1, total - (self.num_frames - 1) * stride)))
        index = np.minimum(start + stride * np.arange(self.num_frames), total - 1)

        largest = min(height, width)
        side = self.size * rng.uniform(1.0, self.max_downscale)
        side = int(min(max(side, min(self.size, largest)), largest))
        top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
        piece = torch.from_numpy(frames[index, top : top + side, left : left + side])
        if side != self.size:
            piece = rearrange(piece, "f h w c -> f c h w")
            piece = F.interpolate(piece, (self.size, self.size), mode="bilinear", antialias=True)
            piece = rearrange(piece, "f c h w -> f h w c")
        if rng.random() < 0.5:
            piece = piece.flip(2)
        return to_float(piece)
