"""Training state on disk: complete, atomic, found again by itself."""

from pathlib import Path
from typing import Any

import torch

from diffusion.utils.errors import UserError
from diffusion.utils.files import replacing


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """The file under `path` is always whole."""
    with replacing(path) as partial, partial.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # torch closes its archive over what the disk said
            raise (error.__context__ or error) from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path}: not a readable checkpoint; delete it to start over") from error
