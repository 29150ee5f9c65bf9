"""Training clips from small data sets: frames decoded once, batches as a function of the step."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from diffusion.data.training.bad_videos import BadVideos
from diffusion.data.training.batch import Batch, global_samples, seeded
from diffusion.data.training.crops import place_window, to_clip
from diffusion.data.training.frame_cache import FrameCache
from diffusion.data.video_list import list_videos
from diffusion.utils.errors import ConfigError
from diffusion.utils.ranges import Count, Natural, Range, Share


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
        batch_size: Count,
        size: Count,
        num_frames: Count = 1,
        frame_strides: Sequence[Count] = (1,),
        max_downscale: Annotated[float, Range(1)] = 2.0,
        max_frames: Count = 96,
        max_bad_share: Share = 0.5,
        seed: Natural = 0,
        rank: int = 0,
        world_size: int = 1,
        bad_list: Path | None = None,
    ):
        if not frame_strides:
            raise ConfigError("frame_strides is empty; give at least one")
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
        """(F, H, W, 3) uint8 -> (3, num_frames, size, size) uint8."""
        total = len(frames)
        stride = int(rng.choice(self.frame_strides))
        start = int(rng.integers(max(1, total - (self.num_frames - 1) * stride)))
        index = np.minimum(start + stride * np.arange(self.num_frames), total - 1)
        zoom = rng.uniform(1.0, self.max_downscale)
        window = place_window(frames.shape[1:3], self.size, zoom, rng)
        return to_clip(window.cut(frames)[index], self.size, flip=rng.random() < 0.5)
