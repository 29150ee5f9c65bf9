"""What a check of a device finds, and how checks are run: one that fails stops no other."""

import gc
import logging
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from diffusion.utils.cli import one_line
from diffusion.utils.errors import on_one_line

log = logging.getLogger(__name__)

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"


@dataclass(frozen=True)
class Setting:
    """device: that is checked. small: sizes that a CPU takes in minutes. folder: scratch."""

    device: torch.device
    small: bool
    folder: Path

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"


@dataclass(frozen=True)
class Outcome:
    """One line of the results.

    value, bound: a number and what it may be at most, or what was found in words.
    note: why it failed or was skipped, or what else is worth knowing.
    details: numbers that have a table of their own.
    """

    name: str
    status: str = PASSED
    value: float | str | None = None
    bound: float | None = None
    note: str = ""
    seconds: float | None = None
    peak_memory_mb: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


Check = Callable[[Setting], Iterable[Outcome]]


class Skipped(Exception):
    """The check cannot be made here; says why."""


def at_most(name: str, value: float, bound: float, **more: Any) -> Outcome:
    """Passed if the value is a number and within the bound."""
    return Outcome(name, PASSED if value <= bound else FAILED, value, bound, **more)


def run_checks(checks: Mapping[str, Check], setting: Setting) -> list[Outcome]:
    """All of them, in their order; an error is a check that failed."""
    outcomes: list[Outcome] = []
    for name, check in checks.items():
        log.info("%s ...", name)
        begun = time.perf_counter()
        found: list[Outcome] = []
        try:
            found += check(setting)
        except Skipped as reason:
            found.append(Outcome(name, SKIPPED, note=str(reason)))
        except Exception as error:
            log.debug("%s", traceback.format_exc())
            found.append(Outcome(name, FAILED, note=one_line(error) or said(error)))
        seconds = time.perf_counter() - begun
        found[-1] = replace(found[-1], seconds=seconds)
        for outcome in found:
            log.info("  %s: %s %s", outcome.name, outcome.status, outcome.note)
        outcomes += found
        gc.collect()
        if setting.is_cuda:
            torch.cuda.empty_cache()
    return outcomes


def said(error: Exception) -> str:
    """An error that nobody expected, with the place."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    words = on_one_line(error)[:500]
    return f"{type(error).__name__}: {words} ({Path(place.filename).name}:{place.lineno})"


def as_json(outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
    return [asdict(outcome) for outcome in outcomes]
