"""One video by several processes: each runs its share of windows and tiles, all know all of it."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from diffusion.pipelines.blending import Units


def run_together(net: Callable[..., Tensor], units: Units) -> list[Tensor]:
    """`net` on every unit, unit i by process i % count. Every process gives the same units.

    Results have one shape and dtype. They are exchanged, not summed, so that what follows is the
    same as in one process, bit for bit.
    """
    rank, count = dist.get_rank(), dist.get_world_size()
    # one that has none does the first again: it would wait anyway, and learns the shape
    mine = [net(*unit) for unit in units[rank::count] or units[:1]]
    rounds = -(-len(units) // count)
    mine += mine[-1:] * (rounds - len(mine))
    results: list[Tensor] = []
    for result in mine:
        result = result.contiguous()  # what is exchanged is memory
        shared = [torch.empty_like(result) for _ in range(count)]
        dist.all_gather(shared, result)
        results += shared
    return results[: len(units)]
