"""Timing of what runs on a device, again and again."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from diffusion.app.stages import peak_memory_mb, reset_peak_memory

DTYPE_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Timer:
    """Runs things `warmup` + `repeat` times on `device`; the first ones do not count."""

    device: torch.device
    warmup: int = 1
    repeat: int = 3

    def __call__(self, run: Callable[[], Any]) -> dict[str, Any]:
        """`seconds` is the median, `runs` are all; memory as `peak_memory_mb` counts it."""
        reset_peak_memory(self.device)
        runs = [self.once(run) for _ in range(self.warmup + self.repeat)][self.warmup :]
        return {
            "seconds": statistics.median(runs),
            "runs": runs,
            "peak_memory_mb": peak_memory_mb(self.device),
        }

    def once(self, run: Callable[[], Any]) -> float:
        """Seconds."""
        self._wait()
        begun = time.perf_counter()
        run()
        self._wait()
        return time.perf_counter() - begun

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
