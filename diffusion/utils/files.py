"""Files and folders that commands write: whole under their final name, or not there."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from diffusion.utils.errors import UserError


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Within the block, a file beside `path` to write to; after it, that file is `path`.

    After an exception it is removed, and an older `path` stays as it was. What the disk refuses
    becomes a UserError that names `path`.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name[:200]}.{os.getpid()}.partial")
    try:
        partial.touch()
        mode = partial.stat().st_mode
        yield partial
        partial.chmod(mode)  # safetensors makes files that only their owner can read
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        reason = " ".join((getattr(error, "strerror", None) or str(error)).split())
        raise UserError(
            f"{path}: cannot be written ({reason}); free some space or choose another folder"
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink()


def write_json(path: Path, values: Any) -> None:
    """The file, whole; folders on the way are made."""
    make_folder(path.parent)
    with replacing(path) as partial:
        partial.write_text(json.dumps(values, indent=2) + "\n")


def make_folder(path: str | Path) -> Path:
    """The folder, made if missing; UserError if that cannot be or nothing can be written there."""
    path = Path(path).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{path}: the folder cannot be made ({error.strerror}); choose another"
        ) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"{path}: the folder cannot be written to; choose another")
    return path
