import os
import subprocess
import sys
import time

import pytest

from diffusion.config import ROOT

SCRIPT = ROOT / "tools" / "download_weights.py"


def download(*arguments, endpoint) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments],
        env=os.environ | {"HF_ENDPOINT": endpoint},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://hub.invalid"])
def test_without_internet_it_fails_soon_with_one_line(tmp_path, endpoint):
    begun = time.monotonic()
    result = download("--output-dir", tmp_path, endpoint=endpoint)
    assert time.monotonic() - begun < 60  # the library's own retries would add 23 s to the start
    assert result.returncode == 2
    errors = [line for line in result.stderr.splitlines() if "error:" in line]
    assert len(errors) == 1
    assert "cannot be reached" in errors[0]
    assert "Traceback" not in result.stderr
    assert "Retrying" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_there_need_no_internet(tmp_path):
    for name in ("effnet_encoder.safetensors", "previewer.safetensors"):
        (tmp_path / name).write_bytes(b"weights")
    parts = ("compressor", "previewer")
    result = download("--output-dir", tmp_path, "--only", *parts, endpoint="http://127.0.0.1:9")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("already there") == 2


def test_an_unknown_part_is_named():
    result = download("--only", "dit", endpoint="http://127.0.0.1:9")
    assert result.returncode == 2
    assert "'dit'" in result.stderr
    assert "refiner" in result.stderr
