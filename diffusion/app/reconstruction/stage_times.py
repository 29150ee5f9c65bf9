"""The stages of a command: their time, and a bar for those that take longer than a second."""

import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from time import perf_counter
from typing import TypeVar

import torch
from tqdm import tqdm

from diffusion.utils.measuring import synchronize
from diffusion.utils.progress import displayed

T = TypeVar("T")

TOTAL, WAIT = "total", "wait"


class Stages:
    """`with stages("decode"): ...` adds to `stages.seconds()["decode"]`.

    A stage's seconds are those in which its thread was busy with it: within another stage of the
    same thread, that one's clock stands still, and clocks of several threads run at the same time,
    so that their sum may exceed the whole time, `TOTAL`. `WAIT` is for what the computing thread
    waits for others.

    device: what the thread that makes this object computes on. Where a stage begins or ends there,
        its queue is waited for, so that no stage counts what another one gave it.
    """

    def __init__(self, device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        self._seconds: dict[str, float] = {}
        self._lock = threading.Lock()
        self._clocks = threading.local()
        self._computing, self._begun = threading.get_ident(), perf_counter()

    def seconds(self) -> dict[str, float]:
        """Of every stage so far, and of all since the beginning."""
        with self._lock:
            return {**self._seconds, TOTAL: perf_counter() - self._begun}

    @contextmanager
    def __call__(self, name: str | None) -> Iterator[None]:
        """name: None for what counts for no stage."""

        def bar(items: Iterable[T]) -> Iterator[T]:
            return tqdm(items, desc=f"{name or '':>8}", delay=1.0, leave=False, file=sys.stderr)

        self._switch()
        self._running.append(name)
        try:
            with displayed(bar):
                yield
        finally:
            self._switch()
            self._running.pop()

    def each(self, name: str | None, items: Iterable[T]) -> Iterator[T]:
        """The items; the time that each takes to come counts for the stage."""
        items = iter(items)
        while True:
            with self(name):
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item
            del item  # or it would live until the next one is there

    def idle(self, items: Iterable[T]) -> Iterator[T]:
        """The items; the time that each takes to come counts for no stage."""
        return self.each(None, items)

    def wait(self) -> AbstractContextManager[None]:
        """Within the block, the computing thread waits for another one."""
        return self(WAIT)

    @property
    def _running(self) -> list[str | None]:
        """Of this thread, the innermost stage last."""
        if not hasattr(self._clocks, "running"):
            self._clocks.running, self._clocks.since = [], 0.0
        return self._clocks.running

    def _switch(self) -> None:
        """Give the time since the last call to the innermost stage of this thread."""
        running = self._running
        if threading.get_ident() == self._computing:
            synchronize(self.device)
        now = perf_counter()
        name = running[-1] if running else None
        if name is not None:
            with self._lock:
                self._seconds[name] = self._seconds.get(name, 0.0) + now - self._clocks.since
        self._clocks.since = now
