"""What a result depends on beside the config: code, packages, machine."""

import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from diffusion.config import ROOT
from diffusion.utils.files import write_json


def describe_environment() -> dict[str, Any]:
    """The git revision (None outside a clone), versions of Python and packages, the device."""
    packages = {d.metadata["Name"]: d.version for d in metadata.distributions()}
    return {
        "git_revision": git("rev-parse", "HEAD"),
        "git_changes": (git("status", "--porcelain") or "").splitlines(),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
    }


def git(*arguments: str) -> str | None:
    """What git says about this project; None where it is not installed or knows nothing."""
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.rstrip() if done.returncode == 0 else None


def save_environment(path: Path) -> None:
    write_json(path, describe_environment())
