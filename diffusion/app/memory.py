"""The most memory in use during a piece of work, also of several pieces in one process."""

from contextlib import suppress
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # of the resident set, see proc_pid_clear_refs(5)


def reset_peak_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        CLEAR.write_text(RESET_PEAK)


def peak_memory_mb(device: torch.device) -> float | None:
    """MB (10^6 bytes) since the last reset: the GPU's on CUDA, else the process's.

    None where the system does not say; since its start where the system cannot reset.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    with suppress(OSError):
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    return None
