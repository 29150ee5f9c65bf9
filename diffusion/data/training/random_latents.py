"""Encoded training clips: batches of random pieces of them as a function of the step."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from diffusion.data.training.batch import SHARED, LatentBatch, global_samples, seeded
from diffusion.data.training.crops import nearest_size, parse_sizes
from diffusion.data.training.latent_folder import (
    LatentClip,
    clip_name,
    read_index,
    unreadable_shard,
)
from diffusion.data.video_list import list_videos
from diffusion.utils.errors import UserError
from diffusion.utils.ranges import Count, Natural

log = logging.getLogger(__name__)


class RandomLatents:
    """Random pieces of the clips that tools/prepare_latents.py wrote: `latents(step) -> batch`.

    num_frames: frames per piece.
    size: of a piece in VAE latents: S for S x S, [rows, columns], or a list of these. Of several,
        a batch has one, drawn in proportion to its clips; a clip serves the one that is nearest to
        it in aspect ratio of those that fit into it. Clips that are too small for all are left out.
    video_list: of the config; videos of it that have no clip here are counted in the log.
    rank, world_size: of this process among those that draw one batch together.
    """

    def __init__(
        self,
        *,
        folder: str,
        batch_size: Count,
        size: Count | Sequence[Count] | Sequence[Sequence[Count]],
        num_frames: Count = 8,
        seed: Natural = 0,
        video_list: Sequence[str] | str = (),
        rank: int = 0,
        world_size: int = 1,
    ):
        self.folder, self.num_frames, self.seed = Path(folder), num_frames, seed
        self.samples = global_samples(batch_size, rank, world_size)
        clips = read_index(self.folder)
        if video_list:
            report_missing(video_list, clips, self.folder)
        self.sizes = parse_sizes(size, max(clip.upsampling for clip in clips))
        self.buckets = defaultdict(list)  # number of the size -> its clips
        for clip in clips:
            if (fitting := self._fitting(clip)) is not None:
                self.buckets[fitting].append(clip)
        used = sum(map(len, self.buckets.values()))
        if not used:
            clip = clips[0]
            raise UserError(
                f"{folder}: no clip is large enough for pieces of {num_frames} frames of size "
                f"{size}; the first has {clip.frames} frames of {clip.height}x{clip.width}"
            )
        if used < len(clips):
            log.info("%s: %d of %d clips are too small", folder, len(clips) - used, len(clips))

    def __call__(self, step: int) -> LatentBatch:
        place = self.bucket(step)
        drawn = [self.sample(step, i, place) for i in self.samples]
        pieces, sources = zip(*drawn, strict=True)
        stacked = {name: torch.stack([p[name] for p in pieces]) for name in pieces[0]}
        return LatentBatch(
            stacked["target"], stacked["semantic"], stacked.get("base"), list(sources)
        )

    def bucket(self, step: int) -> int:
        """Which of `sizes` the batch has: that of a clip drawn from all, the same in all ranks."""
        places = sorted(self.buckets)
        counts = np.cumsum([len(self.buckets[place]) for place in places])
        drawn = seeded(self.seed, 0, step, SHARED).integers(counts[-1])
        return places[int(np.searchsorted(counts, drawn, side="right"))]

    def sample(self, step: int, i: int, place: int) -> tuple[dict[str, Tensor], str]:
        """A random piece of one clip: tensors (C, F, h, w), and the video they come from."""
        rng = seeded(self.seed, 0, step, i)
        clips = self.buckets[place]
        clip = clips[rng.integers(len(clips))]
        up = clip.upsampling
        rows, columns = (side // up for side in self.sizes[place])
        start = int(rng.integers(clip.frames - self.num_frames + 1))
        top = int(rng.integers(clip.height // up - rows + 1))
        left = int(rng.integers(clip.width // up - columns + 1))
        path = self.folder / clip.shard
        try:
            with safe_open(path, framework="pt") as file:
                prefix = f"{clip.clip}."
                piece = {}
                for key in (key for key in file.keys() if key.startswith(prefix)):  # noqa: SIM118
                    name = key.removeprefix(prefix)
                    k = 1 if name == "semantic" else up
                    piece[name] = file.get_slice(key)[
                        :,
                        start : start + self.num_frames,
                        k * top : k * (top + rows),
                        k * left : k * (left + columns),
                    ]
        except (OSError, SafetensorError) as error:
            raise unreadable_shard(path) from error
        return piece, clip.source

    def _fitting(self, clip: LatentClip) -> int | None:
        """The number of the best of `sizes` for the clip."""
        if clip.frames < self.num_frames:
            return None
        fits = [
            i
            for i, (rows, columns) in enumerate(self.sizes)
            if rows <= clip.height and columns <= clip.width
        ]
        if not fits:
            return None
        return fits[nearest_size((clip.height, clip.width), [self.sizes[i] for i in fits])]


def report_missing(
    video_list: Sequence[str] | str, clips: Sequence[LatentClip], folder: Path
) -> None:
    """Say in the log how many videos have no clip; encoded ones may be gone, so none is read."""
    try:
        videos = list_videos(video_list)
    except UserError:
        return
    there = {clip.clip for clip in clips}
    missing = [video for video in videos if clip_name(video, 0) not in there]
    if missing:
        log.info(
            "%d of %d videos of video_list have no clips in %s, the first: %s; "
            "tools/prepare_latents.py encodes those that are new",
            *(len(missing), len(videos), folder, missing[0]),
        )
