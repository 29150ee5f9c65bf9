"""What a training run measures about itself between two records."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


class Meter:
    """Means of scalars, and speed, over the steps since the last `restart`.

    The means go on where they were when a run continues from a checkpoint; the speed begins anew.
    """

    def __init__(self):
        self.restart()

    def restart(self) -> None:
        self.totals: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self.start_clock()

    def start_clock(self) -> None:
        self.steps, self.clips, self.waited, self.begun = 0, 0, 0.0, time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The block waits for data."""
        begun = time.perf_counter()
        yield
        self.waited += time.perf_counter() - begun

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The block is no part of the training's speed."""
        begun = time.perf_counter()
        yield
        self.begun += time.perf_counter() - begun

    def step(self, clips: int) -> None:
        """Count a step of so many clips, of all processes."""
        self.steps += 1
        self.clips += clips

    def add(self, scalars: Mapping[str, float]) -> None:
        """What a step gave. It may be told later than that there was one."""
        for name, value in scalars.items():
            self.totals[name] = self.totals.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        return {name: total / self.counts[name] for name, total in self.totals.items()}

    def speed(self) -> dict[str, float]:
        """Seconds per step, clips per second, and the share of the time spent waiting for data."""
        elapsed = time.perf_counter() - self.begun
        return {
            "seconds": elapsed / max(1, self.steps),
            "clips_per_second": self.clips / elapsed,
            "data_share": self.waited / elapsed,
        }

    def state_dict(self) -> dict[str, Any]:
        return {"totals": dict(self.totals), "counts": dict(self.counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.totals, self.counts = dict(state.get("totals", {})), dict(state.get("counts", {}))
