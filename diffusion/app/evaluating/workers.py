"""One evaluation by several processes: which part is whose, and starting them."""

import os
import re
import signal
import subprocess
import sys

from diffusion.app.training.encode_set import Part
from diffusion.utils.errors import UserError


def start_workers(count: int) -> None:
    """Run this command `count` times at once, each on its part; UserError if one fails."""
    # Ended by a signal, this process must not leave its workers behind.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    threads = max(1, (os.cpu_count() or 1) // count)
    variables = {"OMP_NUM_THREADS": str(threads)} | os.environ
    command = [sys.executable, *sys.argv, "--workers", "1"]
    workers = [
        subprocess.Popen([*command, "--part", f"{i + 1}/{count}"], env=variables)
        for i in range(count)
    ]
    try:
        codes = [worker.wait() for worker in workers]
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.terminate()
                worker.wait()
    if any(codes):
        raise UserError("a worker failed, see above; the same command continues")


def parse_part(text: str | None) -> Part:
    """'1/4' is the first of four parts; None is what torchrun says, or everything."""
    if text is None:
        return Part.of_process()
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--part {text}: is not of the form i/n, such as 1/4")
    return Part(int(match[1]) - 1, int(match[2]))
