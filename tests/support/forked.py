"""Processes that start in no time: forked from one that has imported what takes seconds to import.

They are as real as others: signals reach them, a kill leaves what it leaves, their exit code says
how they ended. What they do not show is how a command starts.
"""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import tiny
import torch

from diffusion.config import ROOT
from diffusion.utils.cli import run_command

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        "diffusion.training.trainer_builder",
        "diffusion.app.evaluating.publication",
        "diffusion.app.reconstruction.reconstruction",
    ]
)


class ForkedCommand:
    """tools/<name>.py with these arguments; the interface is that of subprocess.Popen.

    prepare: called in the process beforehand.
    """

    def __init__(
        self,
        name: str,
        *arguments: object,
        environment: Mapping[str, str] | None = None,
        prepare: Callable[[], None] | None = None,
    ):
        self._folder = tempfile.TemporaryDirectory(prefix="forked-")
        self._outputs = [Path(self._folder.name, stream) for stream in ("out", "err")]
        argv = [str(ROOT / "tools" / f"{name}.py"), *map(str, arguments)]
        outputs = [str(path) for path in self._outputs]
        given = (name, argv, outputs, dict(environment or {}), prepare)
        self._process = PROCESSES.Process(target=_run, args=given, daemon=True)
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("forked command", timeout)
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """stdout and stderr, when the process has ended."""
        self.wait(timeout)
        return tuple(path.read_text() if path.exists() else "" for path in self._outputs)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def _run(
    name: str,
    argv: list[str],
    outputs: list[str],
    environment: dict[str, str],
    prepare: Callable[[], None] | None,
) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a forkserver ignores it
    for number, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.environ |= environment
    torch.set_num_threads(1)  # sums in one order, on a machine that is shared
    sys.argv = argv
    if prepare is not None:
        prepare()
    tool = tiny.tool(name)
    run_command(tool.main, tool.build_parser(), argv[1:])


def ranks_of(count: int) -> list[dict[str, str]]:
    """For each of `count` processes, the environment that torchrun would give it."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]
    return [
        {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": str(port),
        }
        for rank in range(count)
    ]


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)
