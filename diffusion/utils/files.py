"""Files and folders that commands write: whole under their final name, or not there."""

import fcntl
import json
import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from diffusion.utils.errors import UserError, on_one_line

RECORD = ".replacing"  # which files get which names, see replacing_together


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Generator[Path]:
    """Within the block, a file beside `path` to write to; after it, that file is `path`.

    After an exception it is removed, and an older `path` stays as it was. What the disk refuses
    becomes a UserError that names `path`.
    """
    path = Path(path)
    partial = _partial(path)
    try:
        with disk_errors(path):
            partial.touch()
            mode = partial.stat().st_mode
            yield partial
            partial.chmod(mode)  # safetensors makes files that only their owner can read
            partial.replace(path)
    finally:
        with suppress(OSError):
            partial.unlink()


@contextmanager
def replacing_together(folder: Path, names: Sequence[str]) -> Generator[list[Path]]:
    """`replacing` for files of a folder that are of use together only: all are new, or none.

    They get their names one after the other, so a record of all is written first, in one step.
    What a kill then leaves undone is done by `finish_replacing`: at the next start of the writer,
    and before a file of the folder is read.
    """
    if len(names) == 1:  # one step by itself
        with replacing(folder / names[0]) as partial:
            yield [partial]
        return
    finish_replacing(folder)
    partials = [_partial(folder / name) for name in names]
    renames = {partial.name: name for partial, name in zip(partials, names, strict=True)}
    try:
        with disk_errors(folder):
            for partial in partials:
                partial.touch()
            mode = partials[0].stat().st_mode
            yield partials
            for partial in partials:
                partial.chmod(mode)
                _flush(partial)  # the record may not reach the disk before what it speaks of
            with replacing(folder / RECORD) as record:
                record.write_text(json.dumps(renames))
                _flush(record)
            _finish(folder, renames)
    finally:
        if not (folder / RECORD).exists():
            for partial in partials:
                with suppress(OSError):
                    partial.unlink()


def finish_replacing(folder: Path) -> None:
    """Give files the names that a writer of `replacing_together` had no time for."""
    try:
        renames = json.loads((folder / RECORD).read_text())
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        _finish(folder, renames)
    except OSError as error:
        raise UserError(
            f"{folder}: who wrote these files was killed before the last step, which cannot be "
            f"done here ({error.strerror}); copy the folder to where you may write"
        ) from error


def _finish(folder: Path, renames: Mapping[str, str]) -> None:
    """Several processes may do so at once."""
    for partial, name in renames.items():
        with suppress(FileNotFoundError):  # it has its name
            # (folders are exchanged: a record names nothing outside of its own)
            (folder / Path(partial).name).replace(folder / Path(name).name)
    (folder / RECORD).unlink(missing_ok=True)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name[:200]}.{os.getpid()}.partial")


def _flush(path: Path) -> None:
    """Wait until the disk has the file."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def disk_errors(path: Path) -> Generator[None]:
    """What the disk refuses within the block, as a UserError that names `path`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = on_one_line(getattr(error, "strerror", None) or error)
        raise UserError(
            f"{path}: cannot be written ({reason}); free some space or choose another folder"
        ) from error


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


@contextmanager
def locked(path: Path) -> Generator[None]:
    """Within the block, no other process that asks for `path`, an empty file, has it."""
    make_folder(path.parent)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # let go when the file is closed, also by a kill
        yield


def file_identity(path: Path) -> list[str | int]:
    """What tells a file from another one under its name: where it is, its size and its time.

    Of a folder also those of the files in it, which may change without it. OSError if it is absent.
    """
    stat = path.stat()
    identity: list[str | int] = [str(path.resolve()), stat.st_size, stat.st_mtime_ns]
    if path.is_dir():
        for file in sorted(path.iterdir()):
            stat = file.stat()
            identity += [file.name, stat.st_size, stat.st_mtime_ns]
    return identity
