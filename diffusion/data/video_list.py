"""`video_list` of a config: which files and folders hold the training videos."""

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from diffusion.config import resolve
from diffusion.utils.errors import UserError

PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
VIDEO_SUFFIXES = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg"}
LIST_SUFFIXES = {".txt", ".json", ".jsonl", ".csv", ".tsv"}
COLUMN = "path"


def list_videos(entries: Sequence[str] | str, *, called: str = "video_list") -> list[Path]:
    """Entries of `video_list` -> one path per clip source, in order.

    An entry is one of
    - a video or a picture;
    - a folder: all videos and pictures in it and below, but pictures that are numbered in equal
      steps (frame_0001.png, frame_0002.png, ...) and alone in their folder are one clip, and the
      folder stands for it;
    - a list: .txt with a path per line (# begins a comment line), .json with a list of paths or of
      {"path": ...}, .jsonl with one of these per line, .csv or .tsv with a column `path`.

    Paths in a list resolve against the list's folder, then the working directory; they may name
    folders. One that does not exist stays: readers count it among the broken ones. A single entry
    need not stand in a list.

    called: what errors call the entries.
    """
    paths: list[Path] = []
    for entry in [entries] if isinstance(entries, str) else entries:
        if not isinstance(entry, str | os.PathLike):
            raise UserError(f"{called}: {entry!r} is not a path")
        path = resolve(entry)
        if not path.exists():
            raise UserError(f"{called}: {entry} does not exist")
        is_list = path.suffix.lower() in LIST_SUFFIXES and path.is_file()
        paths += _listed(path) if is_list else _expanded(path)
    if not paths:
        raise UserError(f"{called} is empty; put paths of videos, folders or lists into it")
    return paths


def _listed(file: Path) -> Iterator[Path]:
    try:
        text = file.read_text(encoding="utf-8-sig")
        named = READERS[file.suffix.lower()](file, text)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: is not a text file in UTF-8; save it as such") from error
    if not named:
        raise UserError(f"{file}: names no videos")
    for path in (Path(name).expanduser() for name in named):
        beside = file.parent / path  # which is `path` itself where that is absolute
        yield from _expanded(beside if beside.exists() else path)


def _read_txt(file: Path, text: str) -> list[str]:
    lines = (line.strip() for line in text.split("\n"))
    return [line for line in lines if line and not line.startswith("#")]


def _read_json(file: Path, text: str) -> list[str]:
    try:
        items = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{file}, line {error.lineno}: is not JSON ({error.msg})") from error
    if not isinstance(items, list):
        raise UserError(f'{file}: must hold a list of paths or of {{"path": ...}}')
    return [_path_of(item, f"{file}, item {i}") for i, item in enumerate(items, 1)]


def _read_jsonl(file: Path, text: str) -> list[str]:
    named = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            named.append(_path_of(json.loads(line), where))
        except json.JSONDecodeError as error:
            raise UserError(f"{where}: is not JSON ({error.msg})") from error
    return named


def _read_table(file: Path, text: str) -> list[str]:
    delimiter = "\t" if file.suffix.lower() == ".tsv" else ","
    try:
        rows = csv.DictReader(io.StringIO(text), delimiter=delimiter)
        columns = rows.fieldnames or []
        if COLUMN not in columns:
            raise UserError(
                f"{file}: has no column {COLUMN!r}, only {', '.join(columns) or 'none'}; "
                "rename the one with the paths"
            )
        return [row[COLUMN].strip() for row in rows if row[COLUMN] and row[COLUMN].strip()]
    except csv.Error as error:
        raise UserError(f"{file}: is not a table ({error})") from error


READERS = {
    ".txt": _read_txt,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".csv": _read_table,
    ".tsv": _read_table,
}


def _path_of(item: Any, where: str) -> str:
    path = item.get(COLUMN) if isinstance(item, dict) else item
    if not isinstance(path, str) or not path:
        keys = f", only {', '.join(map(str, item))}" if isinstance(item, dict) and item else ""
        raise UserError(f'{where}: is no path and has no "{COLUMN}"{keys}')
    return path


def _expanded(path: Path) -> Iterator[Path]:
    """A folder's videos, or the path as it is."""
    if not path.is_dir():
        yield path
        return
    # Links to folders are not followed: they may lead round in circles.
    for folder, below, names in os.walk(path):
        below.sort()
        known = [n for n in names if Path(n).suffix.lower() in VIDEO_SUFFIXES | PICTURE_SUFFIXES]
        if is_frame_folder(known):
            yield Path(folder)
        else:
            yield from (Path(folder) / name for name in sorted(known))


def is_frame_folder(names: Iterable[str]) -> bool:
    """Whether these are one clip's frames: names that differ by a number, in equal steps."""
    matches = [re.fullmatch(r"(.*?)(\d+)(\.\w+)", name) for name in names]
    parts = [match for match in matches if match is not None]
    if not 2 <= len(parts) == len(matches):
        return False
    numbers = sorted(int(part[2]) for part in parts)
    steps = {after - before for before, after in pairwise(numbers)}
    same = {(part[1], part[3].lower()) for part in parts}
    is_picture = next(iter(same))[1] in PICTURE_SUFFIXES
    return len(same) == len(steps) == 1 and is_picture
