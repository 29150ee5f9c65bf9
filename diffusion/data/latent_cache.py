"""Encoded training clips: shards on disk, and random pieces of them as a function of the step."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from diffusion.data.clips import seeded
from diffusion.utils.errors import UserError
from diffusion.utils.files import replacing


@dataclass(frozen=True)
class LatentBatch:
    """What the refiner trains on, all (B, C, F, h, w) at the VAE's resolution but `semantic`.

    target: VAE latents of the clips.
    semantic: (B, C, F, h / up, w / up) semantic latents.
    base: VAE latents of the previews, or None where the refiner does not use them.
    sources: the B paths.
    """

    target: Tensor
    semantic: Tensor
    base: Tensor | None
    sources: list[str]

    def to(self, device: str | torch.device) -> "LatentBatch":
        base = None if self.base is None else self.base.to(device)
        return LatentBatch(self.target.to(device), self.semantic.to(device), base, self.sources)


def save_shard(path: Path, tensors: dict[str, Tensor], source: str) -> None:
    """tensors: (C, F, h, w) by the names of LatentBatch; stored as float16, atomically."""
    stored = {name: t.to(torch.float16).contiguous() for name, t in tensors.items()}
    with replacing(path) as partial:
        save_file(stored, partial, metadata={"source": source})


class RandomLatents:
    """Random pieces of the shards that tools/prepare_latents.py wrote: `latents(step) -> batch`.

    num_frames: frames per clip. size: side of the square piece, in VAE latents.
    """

    def __init__(
        self,
        *,
        folder: str,
        batch_size: int,
        size: int,
        num_frames: int = 8,
        seed: int = 0,
        rank: int = 0,
    ):
        self.paths = sorted(Path(folder).glob("*.safetensors"))
        if not self.paths:
            raise UserError(f"{folder}: holds no latents; run tools/prepare_latents.py first")
        self.batch_size, self.size, self.num_frames = batch_size, size, num_frames
        self.seed, self.rank = seed, rank

    def __call__(self, step: int) -> LatentBatch:
        rng = seeded(self.seed, self.rank, step)
        chosen = [self.paths[i] for i in rng.integers(len(self.paths), size=self.batch_size)]
        pieces, sources = zip(*(self.piece(path, rng) for path in chosen), strict=True)
        stacked = {name: torch.stack([p[name] for p in pieces]).float() for name in pieces[0]}
        return LatentBatch(
            stacked["target"], stacked["semantic"], stacked.get("base"), list(sources)
        )

    def piece(self, path: Path, rng: np.random.Generator) -> tuple[dict[str, Tensor], str]:
        """A random piece of one shard: tensors (C, F, h, w), and the video they come from."""
        try:
            with safe_open(path, framework="pt") as file:
                names: Sequence[str] = list(file.keys())
                slices = {name: file.get_slice(name) for name in names}
                frames, rows, columns = slices["semantic"].get_shape()[1:]
                up = slices["target"].get_shape()[2] // rows
                side = self.size // up
                if frames < self.num_frames or min(rows, columns) < side:
                    raise UserError(
                        f"{path}: {frames} frames of {rows}x{columns} semantic latents are too few "
                        f"for pieces of {self.num_frames} frames of {side}x{side}"
                    )
                start = int(rng.integers(frames - self.num_frames + 1))
                top = int(rng.integers(rows - side + 1))
                left = int(rng.integers(columns - side + 1))
                region = {}
                for name, tensor in slices.items():
                    k = 1 if name == "semantic" else up
                    region[name] = tensor[
                        :,
                        start : start + self.num_frames,
                        k * top : k * (top + side),
                        k * left : k * (left + side),
                    ]
                return region, file.metadata().get("source", str(path))
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: not a readable shard; delete it and encode again") from error
