"""The stages of a command: their time, and a bar for those that take longer than a second."""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from tqdm import tqdm

from diffusion.utils.progress import displayed

T = TypeVar("T")


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
