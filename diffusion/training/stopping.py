"""Leaving a training in good order when somebody asks for it."""

import os
import signal
import sys
from contextlib import AbstractContextManager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest(AbstractContextManager):
    """Within the block, SIGINT (Ctrl-C) or SIGTERM is noted in `received` and nothing else.

    A second one ends the process at once.
    """

    def __init__(self):
        self.received: signal.Signals | None = None

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            sys.stderr.write("\nleft at once; the run continues after its last checkpoint\n")
            sys.stderr.flush()
            os._exit(exit_code(number))
        self.received = signal.Signals(number)
        sys.stderr.write(f"\n{self.received.name}: saving; once more to leave at once\n")


def exit_code(number: int) -> int:
    """What shells report for a process that the signal ended: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + number


def ignore_signals(worker: int) -> None:
    """For processes that load data: they end with the one they serve, not before it."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
