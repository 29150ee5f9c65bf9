"""Batches of consecutive steps, made ahead of time by worker processes."""

import os
import sys
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from diffusion.data.training.batch import Batch, LatentBatch
from diffusion.training.stages.stage import Batches
from diffusion.training.stopping import ignore_signals
from diffusion.utils.errors import UserError

SHARED_MEMORY = "/dev/shm"
PREFETCHED = 2  # batches that each worker makes ahead


class Numbered(Dataset):
    """`batches` by step. A user's mistake is returned: raised, a worker makes a traceback of it."""

    def __init__(self, batches: Batches):
        self.batches = batches

    def __getitem__(self, step: int) -> Batch | LatentBatch | UserError:
        try:
            batch = self.batches(step)
            return batch if get_worker_info() is None else shared(batch)
        except UserError as error:
            return UserError(str(error))


def fetch(
    batches: Batches, steps: range, num_workers: int, *, pin_memory: bool = False
) -> Iterator[Batch | LatentBatch]:
    """`batches(step)` for the steps, in their order, whoever makes them.

    pin_memory: the batches go to a GPU, and this process must not wait while they are copied.
    """
    loader = DataLoader(
        Numbered(batches),
        batch_size=None,
        sampler=steps,
        num_workers=num_workers,
        prefetch_factor=PREFETCHED if num_workers else None,
        pin_memory=pin_memory,
        # Children of this process see that it died. From Python 3.14 on they would not be that.
        multiprocessing_context="fork" if num_workers and sys.platform == "linux" else None,
        worker_init_fn=ignore_signals,
        # a generator of its own: the default would draw from the global random numbers
        generator=torch.Generator(),
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


def shared(batch: Batch | LatentBatch) -> Batch | LatentBatch:
    """The batch in memory that the training process sees too.

    Its sending would do the same, but where that fails nobody learns of it: the training waits.
    """
    try:
        return batch.map(Tensor.share_memory_)
    except RuntimeError as error:
        raise UserError(
            f"a batch of {batch.nbytes / 2**20:.0f} MB does not fit into shared memory ({free_mb()}"
            f"), which holds {PREFETCHED} of each of train.loop.num_workers: make {SHARED_MEMORY} "
            "larger (docker run --shm-size 8g), or set train.loop.num_workers=0"
        ) from error


def free_mb() -> str:
    try:
        state = os.statvfs(SHARED_MEMORY)
    except OSError:
        return f"there is no {SHARED_MEMORY}"
    free, total = (blocks * state.f_frsize / 2**20 for blocks in (state.f_bavail, state.f_blocks))
    return f"{free:.0f} of {total:.0f} MB are free"
