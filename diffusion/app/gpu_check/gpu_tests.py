"""The tests that are marked `gpu`, as a check: each with the number that it found and its bound."""

import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator

from diffusion.app.gpu_check.check_result import FAILED, PASSED, SKIPPED, Outcome, Setting
from diffusion.app.gpu_check.project_commands import CommandFailed, run
from diffusion.config import ROOT
from diffusion.utils.errors import on_one_line

DEVICE_VARIABLE = "CASCADEV_TEST_DEVICE"


def check_gpu_tests(setting: Setting) -> Iterator[Outcome]:
    """pytest -m gpu; on another device than a GPU too. Small: those that need no large weights."""
    report = setting.folder / "gpu_tests.xml"
    words = [sys.executable, "-m", "pytest", "-m", "gpu", f"--junitxml={report}"]
    words += ["-o", "junit_family=xunit1"]  # the form that has properties
    words += [str(ROOT / "tests"), *(["-k", "tiny"] if setting.small else [])]
    failed: CommandFailed | None = None
    try:
        run(words, {DEVICE_VARIABLE: str(setting.device)})
    except CommandFailed as error:
        failed = error
    if not report.exists():
        raise failed or CommandFailed("pytest left no report")
    yield from outcomes_in(report.read_text())


def outcomes_in(report: str) -> Iterator[Outcome]:
    """Of pytest's JUnit XML."""
    cases = list(ElementTree.fromstring(report).iter("testcase"))
    if not cases:
        raise CommandFailed("pytest found no test that is marked gpu")
    for case in cases:
        properties = {p.get("name"): p.get("value") for p in case.iter("property")}
        status, note = PASSED, ""
        for tag, meaning in (("failure", FAILED), ("error", FAILED), ("skipped", SKIPPED)):
            found = case.find(tag)
            if found is not None:
                status, note = meaning, on_one_line(found.get("message") or tag)[:300]
        yield Outcome(
            f"test: {case.get('name')}",
            status,
            float(properties["value"]) if "value" in properties else None,
            float(properties["bound"]) if "bound" in properties else None,
            note,
        )
