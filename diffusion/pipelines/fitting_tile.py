"""How large a tile a network can take, from what its activations need and what memory is free."""

import logging
from collections.abc import Callable
from math import ceil
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from diffusion.pipelines.activation_memory import activation_bytes, free_bytes
from diffusion.utils.errors import UserError

logger = logging.getLogger(__name__)

# Bytes per pixel of a call that no network of ours needs: below, whole frames fit without a look.
AMPLE = 4096
# Of the free memory; the rest is for what kernels take beside activations (up to as much again).
SHARE = 0.5
# A tile's least side in pixels: below, most of it would be overlap.
LEAST = 128


class FittingTile:
    """The side of the largest tile that fits, in positions; the longer side if whole frames do.

    memory_gb: what may be used of the free memory, which is looked at once for every kind of call,
        so that all pieces of a clip are cut alike.
    """

    def __init__(self, device: torch.device, memory_gb: float | None = None):
        self.device, self.memory_gb = device, memory_gb
        self.together = False  # processes on one video must cut it alike: by the least budget
        self._found: dict[tuple[Any, ...], int] = {}

    def budget(self) -> int:
        """Bytes that activations may take: SHARE of what is free, or of the limit if smaller."""
        free = free_bytes(self.device)
        if self.memory_gb is not None:
            free = min(free, self.memory_gb * 1e9)
        if self.together:
            least = torch.tensor(float(free), device=self.device)
            dist.all_reduce(least, dist.ReduceOp.MIN)
            # on one machine, all of them share a CPU's memory
            shared = dist.get_world_size() if self.device.type == "cpu" else 1
            free = least.item() / shared
        return int(SHARE * free)

    def __call__(
        self,
        part: nn.Module,
        call: str,
        size: tuple[int, int],
        unit: int,
        frames: int,
        run: Callable[[int, int], object],
    ) -> int:
        """size: rows and columns, positions of unit x unit pixels. run(rows, columns): `part` on a
        tile of that size.

        Raises UserError if not even small tiles fit.
        """
        key = (id(part), call, size, frames)
        if key not in self._found:
            name = type(part).__name__
            self._found[key] = largest_tile(name, size, unit, frames, run, self.budget())
        return self._found[key]


def largest_tile(
    name: str,
    size: tuple[int, int],
    unit: int,
    frames: int,
    run: Callable[[int, int], object],
    budget: int,
) -> int:
    """As FittingTile; `name` is the network's in messages."""
    longest = max(size)
    if unit**2 * size[0] * size[1] * frames * AMPLE <= budget:
        return longest
    least, needed = max(2, LEAST // unit), 0
    for cuts in range(1, longest + 1):
        # cuts tiles that overlap by a quarter
        side = longest if cuts == 1 else 4 * ceil(longest / (3 * cuts + 1))
        if cuts > 1 and side < least:
            break
        needed = activation_bytes(lambda side=side: run(min(side, size[0]), min(side, size[1])))
        if needed <= budget:
            if cuts > 1:
                logger.info(
                    "%s: tiles of %d pixels, %.1f GB may be used", name, side * unit, budget / 1e9
                )
            return side
    raise UserError(
        f"{name}: {frames} frames of {least * unit}x{least * unit} pixels at a time need "
        f"{needed / 1e9:.2f} GB of the {budget / 1e9:.2f} that may be used: free some memory, or "
        "lower cascade.window and vae.decode_chunk"
    )


def check_fits(height: int, width: int, bytes_per_pixel: float, budget: int) -> None:
    """Refuse frames of which what is held whole, whatever the tiles, does not fit."""
    needed = height * width * bytes_per_pixel
    if needed > budget:
        side = int(min(height, width) * (budget / needed) ** 0.5) // 32 * 32
        raise UserError(
            f"frames of {width}x{height} pixels need {needed / 1e9:.2f} GB, {budget / 1e9:.2f} may "
            f"be used: --size {side} would fit"
        )
