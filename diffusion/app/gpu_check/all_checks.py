"""All checks of a device by name, and the page that they end in."""

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from diffusion.app.benchmarking.speed import describe_machine
from diffusion.app.environment import describe_environment
from diffusion.app.gpu_check import continuing_checks, published_checks, two_devices
from diffusion.app.gpu_check.check_result import (
    FAILED,
    Check,
    Outcome,
    Setting,
    as_json,
    run_checks,
)
from diffusion.app.gpu_check.gpu_tests import check_gpu_tests
from diffusion.utils.errors import UserError
from diffusion.utils.files import make_folder, replacing, write_json

CHECKS: dict[str, Check] = {
    "tests": check_gpu_tests,
    "recon": published_checks.check_recon,
    "training": published_checks.check_training_step,
    "killed_recon": continuing_checks.check_killed_recon,
    "killed_training": continuing_checks.check_killed_training,
    "shared_recon": two_devices.check_shared_recon,
    "ddp": two_devices.check_ddp,
    "fsdp": two_devices.check_fsdp,
    "speed": partial(published_checks.check_speed, compare=("dtypes", "attention")),
    "compile": partial(published_checks.check_speed, compare=("compile",)),
}
PACKAGES = ("torch", "diffusers", "accelerate", "xformers", "flash-attn", "triton")


def chosen_checks(names: Iterable[str]) -> dict[str, Check]:
    """By name, all if none is named."""
    names = list(names) or list(CHECKS)
    for name in names:
        if name not in CHECKS:
            raise UserError(f"--only {name}: is no check; use {', '.join(CHECKS)}")
    return {name: CHECKS[name] for name in names}


def check_device(checks: Mapping[str, Check], setting: Setting, output: Path) -> dict[str, Any]:
    """Run the checks; gpu_check.json, which is returned, and gpu_check.md go into `output`."""
    outcomes = run_checks(checks, setting)
    environment = describe_environment()
    report = {
        "machine": describe_machine(setting.device),
        "small": setting.small,
        "git_revision": environment["git_revision"],
        "python": environment["python"],
        "platform": environment["platform"],
        "packages": {n: v for n, v in environment["packages"].items() if n in PACKAGES},
        "failed": sum(outcome.status == FAILED for outcome in outcomes),
        "checks": as_json(outcomes),
    }
    make_folder(output)
    write_json(output / "gpu_check.json", report)
    with replacing(output / "gpu_check.md") as partial_file:
        partial_file.write_text(page(report, outcomes))
    return report


def page(report: Mapping[str, Any], outcomes: Iterable[Outcome]) -> str:
    """One page of Markdown, to be pasted into an issue."""
    outcomes, machine = list(outcomes), report["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in report["packages"].items())
    lines = [
        f"# gpu_check: {machine['name']}",
        "",
        f"{machine['device']}, {packages}, Python {report['python']}, {report['platform']}, "
        f"revision {report['git_revision'] or 'unknown'}" + (", small" if report["small"] else ""),
        "",
        f"{len(outcomes)} checks, {report['failed']} failed.",
        "",
        "| check | | value | at most | peak MB | s | |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- |",
        *map(row, outcomes),
    ]
    for outcome in outcomes:
        lines += variants(outcome)
    return "\n".join(lines) + "\n"


def row(outcome: Outcome) -> str:
    cells = [
        outcome.name,
        f"**{outcome.status}**" if outcome.status == FAILED else outcome.status,
        shown(outcome.value),
        shown(outcome.bound),
        "" if outcome.peak_memory_mb is None else f"{outcome.peak_memory_mb:.0f}",
        "" if outcome.seconds is None else f"{outcome.seconds:.0f}",
        outcome.note,
    ]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def variants(outcome: Outcome) -> list[str]:
    """The table of one forward in several ways, and of the stages."""
    if "refiner" not in outcome.details:
        return []
    stages = outcome.details["stages"]
    lines = ["", f"{outcome.name}: seconds of the stages", "", "| stage | s | peak MB |"]
    lines += ["| --- | ---: | ---: |"]
    for name, stage in stages.items():
        lines.append(f"| {name} | {stage['seconds']:.4f} | {stage['peak_memory_mb'] or 0:.0f} |")
    ways = outcome.details["refiner"].get("variants", {})
    if ways:
        lines += ["", f"{outcome.name}: one forward of the refiner", "", "| | s | gain |"]
        lines += ["| --- | ---: | ---: |"]
        lines += [f"| {n} | {w['seconds']:.4f} | {w['gain']:.2f} |" for n, w in ways.items()]
    return lines


def shown(value: float | str | None) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else f"{value:.3g}"
