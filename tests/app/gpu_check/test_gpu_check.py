import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
import torch

from diffusion.app.gpu_check.all_checks import CHECKS, chosen_checks, page
from diffusion.app.gpu_check.check_result import (
    FAILED,
    PASSED,
    SKIPPED,
    Outcome,
    Setting,
    Skipped,
    at_most,
    run_checks,
)
from diffusion.app.gpu_check.gpu_tests import outcomes_in
from diffusion.app.gpu_check.project_commands import CommandFailed, kill_when, run
from diffusion.config import ROOT
from diffusion.utils.errors import UserError

SMALL = ("--device", "cpu", "--small", "--output-dir")


@pytest.fixture
def setting(tmp_path) -> Setting:
    return Setting(torch.device("cpu"), True, tmp_path)


def gpu_check(*arguments: object) -> None:
    tool = tiny.tool("gpu_check")
    tool.main(tool.build_parser().parse_args(list(map(str, arguments))))


def test_the_published_configuration_in_small(tmp_path):
    """Checks that need no other process; the rest is below, and slow."""
    gpu_check(*SMALL, tmp_path, "--only", "training", "speed")
    report = json.loads((tmp_path / "gpu_check.json").read_text())
    assert report["failed"] == 0
    assert report["small"]
    names = [check["name"] for check in report["checks"]]
    assert names == ["training step, published configuration", "speed, dtypes and attention"]
    assert all(check["peak_memory_mb"] > 0 for check in report["checks"])
    text = (tmp_path / "gpu_check.md").read_text()
    for wanted in ("# gpu_check: ", *names, "| denoise |", "| bf16, sdpa |", "2 checks, 0 failed"):
        assert wanted in text


@pytest.mark.slow
def test_the_whole_dry_form(tmp_path):
    script = ["bash", str(ROOT / "scripts/gpu_check.sh"), *SMALL, str(tmp_path)]
    done = subprocess.run(script, capture_output=True, text=True)
    text = (tmp_path / "gpu_check.md").read_text()
    assert done.returncode == 0, text
    checks = json.loads((tmp_path / "gpu_check.json").read_text())["checks"]
    skipped = [check["name"] for check in checks if check["status"] == SKIPPED]
    assert skipped == ["fsdp"]
    measured = [check for check in checks if check["bound"] is not None]
    assert len(measured) >= 12
    assert all(check["value"] <= check["bound"] for check in measured)


def test_a_check_that_fails_stops_no_other(setting):
    def raises(setting):
        yield Outcome("first half")
        raise RuntimeError("no such kernel")

    def skips(setting):
        raise Skipped("there is one GPU")

    checks = {"broken": raises, "skipped": skips, "good": lambda s: [at_most("apart", 0.1, 0.2)]}
    outcomes = run_checks(checks, setting)
    assert [outcome.status for outcome in outcomes] == [PASSED, FAILED, SKIPPED, PASSED]
    assert "RuntimeError: no such kernel (test_gpu_check.py:" in outcomes[1].note
    assert outcomes[2].note == "there is one GPU"


@pytest.mark.parametrize("value", [0.3, float("nan")])
def test_what_is_beyond_its_bound_or_no_number_failed(value):
    assert at_most("apart", value, 0.2).status == FAILED


def test_a_failed_check_is_the_exit_code(tmp_path, monkeypatch):
    monkeypatch.setitem(CHECKS, "training", lambda setting: [at_most("apart", 1.0, 0.5)])
    with pytest.raises(SystemExit) as exit_:
        gpu_check(*SMALL, tmp_path, "--only", "training")
    assert exit_.value.code == 1
    assert "| apart | **failed** | 1 | 0.5 |" in (tmp_path / "gpu_check.md").read_text()


def test_mistakes_are_said(monkeypatch):
    with pytest.raises(UserError, match="--only trainign: is no check; use tests, recon, training"):
        chosen_checks(["trainign"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no CUDA device was found; use --device cpu"):
        gpu_check("--only", "training")


def test_tests_are_lines_with_their_numbers():
    report = """<testsuites><testsuite>
        <testcase name="test_parity[fp32]"><properties>
            <property name="value" value="3e-06"/><property name="bound" value="1e-05"/>
        </properties></testcase>
        <testcase name="test_resume"><failure message="assert 1 &lt;= 0">..</failure></testcase>
        <testcase name="test_two"><skipped message="one GPU"/></testcase>
        </testsuite></testsuites>"""
    parity, resume, two = outcomes_in(report)
    assert (parity.status, parity.value, parity.bound) == (PASSED, 3e-6, 1e-5)
    assert (resume.status, resume.note) == (FAILED, "assert 1 <= 0")
    assert two.status == SKIPPED
    with pytest.raises(CommandFailed, match="no test"):
        list(outcomes_in("<testsuites/>"))


def test_a_page_keeps_its_columns():
    report = {
        "machine": {"name": "a GPU", "device": "cuda"},
        "packages": {"torch": "2.15"},
        "python": "3.11",
        "platform": "Linux",
        "git_revision": None,
        "small": False,
        "failed": 1,
    }
    text = page(report, [Outcome("x", FAILED, note="a | b")])
    assert "| x | **failed** |  |  |  |  | a \\| b |" in text


def test_a_command_is_killed_when_it_is_time(tmp_path):
    ready = tmp_path / "ready"
    script = f"import pathlib, time; pathlib.Path({str(ready)!r}).touch(); time.sleep(60)"
    begun = time.monotonic()
    assert kill_when([sys.executable, "-c", script], ready.exists)
    assert time.monotonic() - begun < 30
    assert not kill_when([sys.executable, "-c", "pass"], Path("/nowhere").exists)


def test_a_command_that_fails_says_its_last_line():
    script = "import sys; print('error: no such video'); sys.exit(2)"
    with pytest.raises(CommandFailed, match="ended with 2: error: no such video"):
        run([sys.executable, "-c", script])
    with pytest.raises(CommandFailed, match="ended with 2 before its kill: error: no such video"):
        kill_when([sys.executable, "-c", script], Path("/nowhere").exists)
