"""What a training run shows while it goes on: a progress bar, and scalars on record."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from diffusion.training.meter import Meter
from diffusion.training.monitor import Monitor


class Display:
    """Measures every process's steps, and shows them in one.

    log_interval: steps whose means are one record.
    """

    def __init__(self, work_dir: Path, log_interval: int, is_main: bool):
        self.work_dir, self.log_interval, self.is_main = work_dir, log_interval, is_main
        self.meter = Meter()
        self.monitor: Monitor | None = None  # within `opened`, of the process that shows

    @contextmanager
    def opened(self, step: int, max_steps: int) -> Iterator[None]:
        """Within the block steps are shown, from the one after `step` on."""
        self.meter.start_clock()
        self._loss = ""  # of the last steps that were looked at
        self.monitor = Monitor(self.work_dir, step) if self.is_main else None
        self._bar = tqdm(
            desc=self.work_dir.name,
            total=max_steps,
            initial=step,
            disable=not self.is_main,
            dynamic_ncols=True,
            mininterval=0.1 if sys.stderr.isatty() else 30.0,  # lines of a log file
        )
        try:
            with self._bar:
                yield
        finally:
            if self.monitor is not None:
                self.monitor.close()

    def due(self, step: int) -> bool:
        """Whether the step ends a record."""
        return step % self.log_interval == 0

    def advance(self, step: int, lr: float) -> None:
        """Show a step that is done, and what the meter has been told of it and those before."""
        means, speed = self.meter.means(), self.meter.speed()
        if "loss" in means:
            self._loss = f"loss {means['loss']:.4f}, "
        self._bar.set_postfix_str(
            f"{self._loss}lr {lr:.1e}, {speed['clips_per_second']:.2f} clips/s, "
            f"{speed['data_share']:.0%} data wait",
            refresh=False,
        )
        self._bar.update()
        if self.due(step):
            if self.monitor is not None:
                self.monitor.scalars(step, means | speed | {"lr": lr})
            self.meter.restart()
