"""The stages of a command: their time, and a bar for those that take longer than a second."""

import resource
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from tqdm import tqdm

from diffusion.utils.allocator import return_freed_memory
from diffusion.utils.progress import displayed

T = TypeVar("T")
PEAK_RESET = Path("/proc/self/clear_refs")


class Stages:
    """`with stages("decode"): ...` adds to `stages.seconds["decode"]`.

    Within another stage, that one's clock stands still.
    """

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._running: list[str] = []
        self._since = 0.0

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        def bar(items):
            return tqdm(items, desc=f"{name:>8}", delay=1.0, leave=False, file=sys.stderr)

        self._count()
        self._running.append(name)
        self.seconds.setdefault(name, 0.0)
        try:
            with displayed(bar):
                yield
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
        finally:
            self._count()
            self._running.pop()

    def each(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """The items; the time that each takes to come counts for the stage."""
        items = iter(items)
        while True:
            with self(name):
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item

    def _count(self) -> None:
        """Give the time since the last call to the innermost stage."""
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now


def reset_peak_memory(device: torch.device) -> None:
    """Count `peak_memory_mb` from now on, where the system can (CUDA, Linux)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif PEAK_RESET.exists():
        return_freed_memory()
        PEAK_RESET.write_text("5")  # proc(5): the resident set's peak becomes its size


def peak_memory_mb(device: torch.device) -> float:
    """Most memory in use so far, in MB (10^6 bytes): the GPU's on CUDA, else the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes * (1 if sys.platform == "darwin" else 1024) / 1e6
