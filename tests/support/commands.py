"""Running the commands: in this process, which is quick, or as a user does."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny

from diffusion.config import ROOT
from diffusion.utils.cli import run_command

# One thread: a test machine is shared, and two threads need not sum in one order.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line on stderr."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        return lines[0]


class Commands:
    """commands("encode", video, "-o", out) runs tools/encode.py with the tiny cascade's config."""

    def __init__(self, config: Path, capsys: pytest.CaptureFixture):
        self.config, self.capsys = config, capsys

    def __call__(self, name: str, *arguments, config: Path | None = None) -> Result:
        tool = tiny.tool(name)
        argv = list(map(str, arguments))
        if name in ("reconstruct", "encode", "decode", "upscale", "interpolate"):
            # fp32: what a machine does in bf16 depends on its processor
            argv += ["--config", str(config or self.config)]
            argv += [] if "--device" in argv else ["--device", "cpu"]
            argv += [] if "--dtype" in argv else ["--dtype", "fp32"]
        self.capsys.readouterr()
        code = 0
        try:
            run_command(tool.main, tool.build_parser(), argv)
        except SystemExit as stop:
            code = stop.code
        out, err = self.capsys.readouterr()
        return Result(code, out, err)

    def ok(self, name: str, *arguments, **options) -> Result:
        result = self(name, *arguments, **options)
        assert result.code == 0, result.err
        return result

    def refused(self, name: str, *arguments, **options) -> str:
        """The one line on stderr of a command that must end with exit code 2."""
        result = self(name, *arguments, **options)
        assert result.code == 2, result.err
        assert "Traceback" not in result.err
        return result.error


def start_process(name: str, *arguments, **options) -> subprocess.Popen:
    """The command as a process that Ctrl-C reaches, also where the tests run in the background."""
    command = [sys.executable, str(ROOT / "tools" / f"{name}.py"), *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # a shell ignores SIGINT for what it starts with &, and children inherit that
    return subprocess.Popen(
        command, env=ENVIRONMENT, preexec_fn=_obey_interrupts, **pipes, **options
    )


def _obey_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
