"""The project's own commands in processes of their own, to their end or to a kill."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile

from diffusion.config import ROOT

LIMIT = 1800  # seconds that a command may take
POLL = 0.002


class CommandFailed(Exception):
    """A command did not end well; says its last line."""


def command(script: str, *arguments: object, processes: int = 1) -> list[str]:
    """processes: started together by torchrun, where there are several."""
    launcher: list[object] = []
    if processes > 1:
        launcher = [ROOT / "scripts/torchrun.py", "--standalone", "--nproc-per-node", processes]
    return [sys.executable, *map(str, [*launcher, ROOT / script, *arguments])]


def run(words: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """To its end; what it printed. CommandFailed unless it ended with 0."""
    done = subprocess.run(
        words,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT,
    )
    if done.returncode:
        raise CommandFailed(f"{name_of(words)} ended with {done.returncode}: {last(done.stdout)}")
    return done.stdout


def kill_when(words: Sequence[str], is_time: Callable[[], bool]) -> bool:
    """kill -9 as soon as `is_time` says so; False if the command was done before."""
    with TemporaryFile("w+") as said:
        process = subprocess.Popen(words, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT)
        begun = time.monotonic()
        try:
            while process.poll() is None:
                if is_time():
                    process.send_signal(signal.SIGKILL)
                    return process.wait() == -signal.SIGKILL
                if time.monotonic() - begun > LIMIT:
                    raise CommandFailed(f"{name_of(words)} did nothing to be killed at")
                time.sleep(POLL)
        finally:
            process.kill()
            process.wait()
        if process.returncode:
            said.seek(0)
            code, line = process.returncode, last(said.read())
            raise CommandFailed(f"{name_of(words)} ended with {code} before its kill: {line}")
    return False


def name_of(words: Sequence[str]) -> str:
    return " ".join(Path(word).name for word in words[1:] if word.endswith(".py"))


def last(text: str) -> str:
    """The line that says why."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "rror" in line]
    return (errors or lines or ["nothing was said"])[-1][:500]
