"""Folders that commands write into."""

import os
from pathlib import Path

from diffusion.utils.errors import UserError


def make_folder(path: str | Path) -> Path:
    """The folder, made if missing; UserError if that cannot be or nothing can be written there."""
    path = Path(path).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: the folder cannot be made ({error.strerror})") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"{path}: the folder cannot be written to; choose another --output-dir")
    return path
