"""The stages of a command: their time, and a bar for those that take longer than a second."""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from tqdm import tqdm

from diffusion.utils.progress import displayed


class Stages:
    """`with stages("decode"): ...` adds to `stages.seconds["decode"]`."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        def bar(items):
            return tqdm(items, desc=f"{name:>8}", delay=1.0, leave=False, file=sys.stderr)

        begun = time.perf_counter()
        with displayed(bar):
            yield
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begun


def peak_memory_mb(device: torch.device) -> float:
    """Most memory in use so far, in MB (10^6 bytes): the GPU's on CUDA, else the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes * (1 if sys.platform == "darwin" else 1024) / 1e6
