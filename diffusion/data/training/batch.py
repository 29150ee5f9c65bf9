"""What a training step gets: clips or latents, and the numbers that decide which."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from diffusion.data.transforms import normalize

SHARED = 2**32  # in place of a sample's number: draws that concern the whole batch

Kind = TypeVar("Kind", bound="Shipped")


@dataclass(frozen=True)
class Shipped:
    """Tensors on their way from a loader process to a device, in as few bytes as hold them."""

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """Those that are not None, by name."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in named.items() if isinstance(value, Tensor)}

    def map(self: Kind, function: Callable[[Tensor], Tensor]) -> Kind:
        return replace(self, **{name: function(t) for name, t in self.tensors().items()})

    def pin_memory(self: Kind) -> Kind:
        """As DataLoader calls it, so that `to` need not wait for the copy."""
        return self.map(Tensor.pin_memory)

    def to(self: Kind, device: str | torch.device) -> Kind:
        """On the device, and only there as float32: 8-bit levels as [-1, 1]."""
        # back to a CPU there is nothing that would make the reader wait for the copy
        on_its_way = torch.device(device).type != "cpu"
        return self.map(lambda t: widened(t.to(device, non_blocking=on_its_way)))


@dataclass(frozen=True)
class Batch(Shipped):
    """video: (B, 3, F, H, W) RGB: uint8 as loaded, after `to` float32 in [-1, 1].

    sources: the B paths.
    """

    video: Tensor
    sources: list[str]

    def __len__(self) -> int:
        return len(self.sources)


@dataclass(frozen=True)
class LatentBatch(Shipped):
    """What the refiner trains on, all (B, C, F, h, w) at the VAE's resolution but `semantic`.

    In the type they are stored in as loaded, float32 after `to`.

    target: VAE latents of the clips.
    semantic: (B, C, F, h / up, w / up) semantic latents.
    base: VAE latents of the previews, or None where the refiner does not use them.
    sources: the B paths.
    """

    target: Tensor
    semantic: Tensor
    base: Tensor | None
    sources: list[str]

    def __len__(self) -> int:
        return len(self.sources)


def widened(tensor: Tensor) -> Tensor:
    """float32 of latents, or of 8-bit levels in [-1, 1]."""
    return normalize(tensor) if tensor.dtype == torch.uint8 else tensor.float()


def seeded(*words: int) -> np.random.Generator:
    """Randomness that is a function of (seed, step, sample, ...): a resumed run draws the same."""
    return np.random.default_rng(np.random.SeedSequence(words))


def global_samples(batch_size: int, rank: int, world_size: int) -> range:
    """The places of a process's samples in the batch of all processes together."""
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, but must be at least 1")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is not below world_size {world_size}")
    return range(rank * batch_size, (rank + 1) * batch_size)
