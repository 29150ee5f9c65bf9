"""Training clips from large data sets: each one decoded when a step asks for it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from diffusion.data.training.bad_videos import BadVideos
from diffusion.data.training.batch import SHARED, Batch, global_samples, seeded
from diffusion.data.training.crops import (
    Crop,
    Size,
    nearest_size,
    parse_sizes,
    place_window,
    to_clip,
)
from diffusion.data.training.video_index import VideoFacts, index_videos
from diffusion.data.transforms import SIDE_MULTIPLE
from diffusion.data.video.open_video import open_video
from diffusion.data.video_list import list_videos
from diffusion.utils.errors import UserError, VideoError
from diffusion.utils.ranges import Count, Natural, Share

MAX_ATTEMPTS = 100
Policy = Literal["crop", "resize", "random"]


class VideoClips:
    """Clips as a function of the step, read from the videos with one seek each.

    A clip is `num_frames` frames of one video from a random start, every `stride`th. Their sizes
    and lengths are read once, before training, and kept in `cache_dir`.

    size: S for S x S pixels, [height, width], or a list of these: the buckets. A batch has the size
        of one bucket, drawn in proportion to its videos; a video is in the bucket whose aspect
        ratio is nearest to its own, so that portrait videos need a portrait bucket.
    frame_strides: a clip's is drawn from those for which its video is long enough. Videos too short
        for all of them are left out, and so are still pictures unless num_frames is 1.
    policy: "crop" takes a window of `size` in the video's own pixels; "resize" the largest window
        of its shape, resized with antialiasing; "random" one between the two. A video smaller than
        `size` is enlarged until it covers it; nothing is ever padded.
    crop: where the window lies, "random" or "center".
    flip: share of the clips that are mirrored.
    threads: of a decoder. More than one helps where there are fewer loader processes than cores.
    max_bad_share: training stops when more of the videos than this cannot be used. A sample whose
        video fails is replaced by another draw.
    rank, world_size: of this process among those that draw one batch together.
    bad_list: file that lists what cannot be used.

    The published recipe: size=1024, num_frames=8, frame_strides=[4], policy="crop", crop="center".
    """

    def __init__(
        self,
        *,
        video_list: Sequence[str],
        batch_size: Count,
        size: Count | Sequence[Count] | Sequence[Sequence[Count]],
        num_frames: Count = 8,
        frame_strides: Sequence[Count] = (1,),
        policy: Policy = "resize",
        crop: Crop = "random",
        flip: Share = 0.5,
        cache_dir: str = "work_dirs/index",
        threads: Count = 1,
        max_bad_share: Share = 0.5,
        seed: Natural = 0,
        rank: int = 0,
        world_size: int = 1,
        bad_list: Path | None = None,
    ):
        for name, value, valid in (
            ("policy", policy, get_args(Policy)),
            ("crop", crop, get_args(Crop)),
        ):
            if value not in valid:
                raise ValueError(f"unknown {name} {value!r}; valid are: {', '.join(valid)}")
        if num_frames < 1 or not frame_strides or min(frame_strides) < 1:
            raise ValueError("num_frames and every one of frame_strides must be at least 1")
        self.sizes = parse_sizes(size, SIDE_MULTIPLE)
        self.num_frames, self.frame_strides = num_frames, tuple(frame_strides)
        self.policy, self.crop, self.flip, self.threads = policy, crop, flip, threads
        self.seed = seed
        self.samples = global_samples(batch_size, rank, world_size)
        paths = list_videos(video_list)
        self.bad = BadVideos(paths, bad_list, max_bad_share)
        self.paths, self.lengths, self.buckets = self._usable(paths, cache_dir)

    def __call__(self, step: int) -> Batch:
        bucket = self.bucket(step)
        clips, sources = zip(*(self.sample(step, i, bucket) for i in self.samples), strict=True)
        return Batch(torch.stack(clips), list(sources))

    def bucket(self, step: int) -> int:
        """Which of `sizes` the batch has: that of a video drawn from all, the same in all ranks."""
        rng = seeded(self.seed, 0, step, SHARED)
        return int(self.buckets[rng.integers(len(self.buckets))])

    def sample(self, step: int, i: int, bucket: int) -> tuple[Tensor, str]:
        members = np.flatnonzero(self.buckets == bucket)
        for attempt in range(MAX_ATTEMPTS):
            rng = seeded(self.seed, 0, step, i, *[attempt] * bool(attempt))
            chosen = int(rng.choice(members))
            path = self.paths[chosen]
            try:
                return self.clip(path, self.lengths[chosen], self.sizes[bucket], rng), str(path)
            except VideoError as error:
                self.bad.add(path, error)
        raise UserError(f"step {step}: {MAX_ATTEMPTS} videos in a row cannot be read; see the log")

    def clip(self, path: Path, length: int, size: Size, rng: np.random.Generator) -> Tensor:
        """-> (3, num_frames, *size) uint8."""
        stride = int(rng.choice([s for s in self.frame_strides if self.span(s) <= length]))
        start = int(rng.integers(length - self.span(stride) + 1))
        with open_video(path, threads=self.threads) as reader:
            frame = (reader.info.height, reader.info.width)
            placing = rng if self.crop == "random" else None
            window = place_window(frame, size, self.zoom(frame, size, rng), placing)
            frames = [window.cut(f) for f in reader.frames(start, self.num_frames, stride)]
        return to_clip(np.stack(frames), size, flip=rng.random() < self.flip)

    def zoom(self, frame: Size, size: Size, rng: np.random.Generator) -> float:
        """Source pixels per pixel of the clip, where the video is large enough."""
        largest = min(have / want for have, want in zip(frame, size, strict=True))
        if self.policy == "random":
            return rng.uniform(1.0, max(1.0, largest))
        return 1.0 if self.policy == "crop" else largest

    def span(self, stride: int) -> int:
        """Frames of a video that a clip reaches over."""
        return (self.num_frames - 1) * stride + 1

    def _usable(
        self, paths: Sequence[Path], cache_dir: str | Path
    ) -> tuple[list[Path], list[int], np.ndarray]:
        """Videos that clips can be drawn from, their numbers of frames, and their buckets."""
        usable: list[tuple[Path, VideoFacts]] = []
        failed: dict[Path, VideoError] = {}
        for path, facts in zip(paths, index_videos(paths, cache_dir), strict=True):
            problem = facts.problem or self._too_short(facts)
            if problem:
                failed[path] = VideoError(path, problem)
            else:
                usable.append((path, facts))
        self.bad.add_all(failed)
        buckets = [nearest_size((facts.height, facts.width), self.sizes) for _, facts in usable]
        return (
            [path for path, _ in usable],
            [facts.num_frames for _, facts in usable],
            np.array(buckets),
        )

    def _too_short(self, facts: VideoFacts) -> str:
        least = self.span(min(self.frame_strides))
        if facts.num_frames >= least:
            return ""
        return (
            f"has {facts.num_frames} frames, fewer than the {least} that clips of "
            f"{self.num_frames} with stride {min(self.frame_strides)} need"
        )
