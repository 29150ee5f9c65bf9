"""Training state on disk: complete, atomic, found again by itself."""

from pathlib import Path
from typing import Any

import torch

from diffusion.utils.errors import UserError


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write under a temporary name, then rename: the file under `path` is always whole."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def load_checkpoint(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path}: not a readable checkpoint; delete it to start over") from error
