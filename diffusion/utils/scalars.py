"""The scalars of a training run: a file with one line of JSON for every time some were recorded."""

import json
from collections.abc import Mapping
from pathlib import Path

from diffusion.utils.errors import UserError
from diffusion.utils.files import replacing

Record = dict[str, float]
"""{"step": 20, "loss": 0.1, ...}; several records of one step hold different scalars."""


def append_scalars(path: Path, step: int, scalars: Mapping[str, float]) -> None:
    values = {name: float(f"{value:.9g}") for name, value in scalars.items()}  # float32 exactly
    with path.open("a") as file:
        file.write(json.dumps({"step": step, **values}) + "\n")


def read_scalars(path: Path) -> list[Record]:
    """All records; a last line which is being written, or was when the run was killed, is none."""
    lines = path.read_text(errors="replace").splitlines()
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(parse(line))
        except ValueError as error:
            if number < len(lines):
                raise UserError(f"{path}: line {number} holds no scalars; delete it") from error
    return records


def parse(line: str) -> Record:
    record = json.loads(line)
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        raise ValueError("no object with a step")
    return record


def forget_scalars_after(path: Path, step: int) -> None:
    """Leave only the records up to `step`."""
    if not path.exists():
        return
    kept = [json.dumps(record) + "\n" for record in read_scalars(path) if record["step"] <= step]
    with replacing(path) as partial:
        partial.write_text("".join(kept))
