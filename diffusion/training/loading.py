"""Batches of consecutive steps, made ahead of time by worker processes."""

import sys
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Dataset

from diffusion.data.training.random_clips import Batch
from diffusion.data.training.random_latents import LatentBatch
from diffusion.training.stages.stage import Batches
from diffusion.training.stopping import ignore_signals
from diffusion.utils.errors import UserError


class Numbered(Dataset):
    """`batches` by step. A user's mistake is returned: raised, a worker makes a traceback of it."""

    def __init__(self, batches: Batches):
        self.batches = batches

    def __getitem__(self, step: int) -> Batch | LatentBatch | UserError:
        try:
            return self.batches(step)
        except UserError as error:
            return UserError(str(error))


def fetch(batches: Batches, steps: range, num_workers: int) -> Iterator[Batch | LatentBatch]:
    """`batches(step)` for the steps, in their order, whoever makes them."""
    loader = DataLoader(
        Numbered(batches),
        batch_size=None,
        sampler=steps,
        num_workers=num_workers,
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
