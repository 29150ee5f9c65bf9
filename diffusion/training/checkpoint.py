"""Training state on disk: complete, atomic, written in the background, found again by itself."""

import logging
import os
import random
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion.training.train_options import Saving
from diffusion.utils.errors import UserError
from diffusion.utils.files import RECORD, finish_replacing, make_folder, replacing

log = logging.getLogger(__name__)

State = dict[str, Any]


def save_checkpoint(path: Path, state: State) -> None:
    """The file under `path` is always whole, also after a power cut."""
    with replacing(path) as partial, partial.open("wb") as file:
        try:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        except RuntimeError as error:  # torch closes its archive over what the disk said
            raise (error.__context__ or error) from error


def load_checkpoint(path: Path, remedy: str = "delete it to start over") -> State:
    """remedy: what to do about a file that cannot be read."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path}: not a readable checkpoint; {remedy}") from error


class Checkpoints:
    """The checkpoints of a run: `folder`/step_00000100.pt, ...

    latest      name of the newest, written after it is whole
    """

    def __init__(self, folder: Path, saving: Saving):
        self.folder, self.saving = folder, saving

    def path(self, step: int) -> Path:
        return self.folder / f"step_{step:08d}.pt"

    def steps(self) -> list[int]:
        """Of the checkpoints that are there, the newest first."""
        names = [path.stem.removeprefix("step_") for path in self.folder.glob("step_*.pt")]
        return sorted(map(int, filter(str.isdecimal, names)), reverse=True)

    def save(self, step: int, state: State) -> None:
        make_folder(self.folder)
        save_checkpoint(self.path(step), state)
        self._point_to(step)
        for old in self.saving.dropped(self.steps()):
            self.path(old).unlink()

    def load(self) -> State | None:
        """The state to continue from: of the newest checkpoint, or None before the first.

        One that cannot be read is an error, which names the newest that can: to go back in time
        is for the user to decide.
        """
        steps = self.steps()
        if not steps:
            older = self.folder.parent / "checkpoint.pt"  # what this trainer wrote at first
            return load_checkpoint(older) if older.exists() else None
        try:
            return load_checkpoint(self.path(steps[0]))
        except UserError as error:
            usable = next((step for step in steps[1:] if is_readable(self.path(step))), None)
            if usable is None:
                raise
            broken = ", ".join(self.path(step).name for step in steps if step > usable)
            raise UserError(
                f"{self.path(steps[0])}: not a readable checkpoint; delete {broken} to continue "
                f"from {self.path(usable).name}"
            ) from error

    def _point_to(self, step: int) -> None:
        with replacing(self.folder / "latest") as partial:
            partial.write_text(self.path(step).name + "\n")

    def clean(self, names: Iterable[str]) -> None:
        """Finish what writers that were killed had begun, and remove what they left.

        names: of files beside the folder of checkpoints, that the same writer makes.
        """
        finish_replacing(self.folder.parent)
        for step in self.steps()[:1]:
            self._point_to(step)
        parts = [*self.folder.glob(".*.partial")]
        for name in (*names, RECORD):
            parts += self.folder.parent.glob(f".{name}.*.partial")
        for path in parts:
            path.unlink(missing_ok=True)


def is_readable(path: Path) -> bool:
    try:
        load_checkpoint(path)
    except UserError:
        return False
    return True


class Background(AbstractContextManager):
    """One job at a time in a thread; its error is raised where `check` or `wait` is called.

    The end of a `with` block waits.
    """

    def __init__(self):
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._job: Future | None = None

    def __exit__(self, *error: object) -> None:
        self.wait()

    def start(self, job: Callable[..., None], *args: Any) -> None:
        """Waits for the job before."""
        self.wait()
        self._job = self._pool.submit(job, *args)

    def check(self) -> None:
        if self._job is not None and self._job.done():
            self.wait()

    def wait(self) -> None:
        job, self._job = self._job, None
        if job is not None:
            job.result()


def random_state() -> State:
    """Of this process's global generators, as what `weights_only` loading accepts."""
    name, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }


def set_random_state(state: State) -> None:
    name, keys, *rest = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
