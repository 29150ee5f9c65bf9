"""--help and Ctrl-C while a command starts: neither waits for torch, which takes seconds."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import ENVIRONMENT, start_process

from diffusion.app.options import SAMPLER_NAMES
from diffusion.config import ROOT
from diffusion.noise.samplers import SAMPLERS

HELP = """
import runpy, sys
sys.argv = [{path!r}, "--help"]
try:
    runpy.run_path({path!r}, run_name="__main__")
except SystemExit as stop:
    assert not stop.code
assert "torch" not in sys.modules
"""


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "tools").glob("*.py")))
def test_help_does_not_wait_for_torch(name):
    code = HELP.format(path=str(ROOT / "tools" / f"{name}.py"))
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "usage" in result.stdout


def test_help_names_every_sampler():
    assert tuple(SAMPLERS) == SAMPLER_NAMES


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_interrupt_while_torch_is_imported(clip, tmp_path):
    process = start_process("reconstruct", clip, "--output-dir", tmp_path / "out")
    maps = Path(f"/proc/{process.pid}/maps")
    deadline = time.monotonic() + 60
    while "libtorch" not in maps.read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()
