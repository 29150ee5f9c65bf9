"""Time and memory of work on a device: the one place that knows how they are measured."""

import statistics
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diffusion.utils.allocator import return_freed_memory

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # of the resident set, see proc_pid_clear_refs(5)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given; a CPU has by then."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak_memory(device: torch.device) -> None:
    """Count `peak_memory_mb` from now on, where the system can (CUDA, Linux)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    return_freed_memory()
    with suppress(OSError):
        CLEAR.write_text(RESET_PEAK)


def peak_memory_mb(device: torch.device) -> float | None:
    """Most memory in use since the last reset, in MB (10^6 bytes): the GPU's, else the process's.

    None where the system does not say; since the process's start where it cannot reset.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    with suppress(OSError):
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    return None


@contextmanager
def timed(seconds: dict[str, float], name: str, device: torch.device) -> Generator[None]:
    """Within the block, work on `device`; its seconds under `name`, all of the queue included."""
    synchronize(device)
    begun = time.perf_counter()
    yield
    synchronize(device)
    seconds[name] = time.perf_counter() - begun


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
        seconds: dict[str, float] = {}
        with timed(seconds, "run", self.device):
            run()
        return seconds["run"]
