"""What a long run has finished, kept on disk until it is complete, so that it can be continued."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffusion.utils.files import file_identity, replacing

logger = logging.getLogger(__name__)


class UnfinishedRun(Sequence[Tensor]):
    """The first VAE latents of a run that was broken off, on the CPU.

        with UnfinishedRun(folder, key) as run:
            for latents in run.keep(pipeline.restore_stream(..., finished=run)):
                ...

    Only a complete run removes `folder`. After a kill, an interrupt or an error, such as too little
    memory, the same command finds it; a run of other settings replaces it.

    key: all that the results depend on, as JSON values.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any], *, writes: bool = True):
        """writes: False for all but one of several processes on one video."""
        self.folder, self.key = folder, json.dumps(key, sort_keys=True, default=str)
        self.writes, self.count = writes, 0
        while self._is_whole(self.count):
            self.count += 1
        self._stored = self.count
        self._tidy()

    def __enter__(self) -> "UnfinishedRun":
        if self.count:
            logger.info("%s: continuing after %d finished windows", self.folder, self.count)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._stored = 0
        self._tidy()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < self.count:
            raise IndexError(index)
        return load_file(self._path(index))["latents"]

    def keep(self, segments: Iterator[Tensor]) -> Iterator[Tensor]:
        """The same, each on disk before it is given on."""
        for i, latents in enumerate(segments):
            if self.writes and i >= self._stored:
                self.folder.mkdir(exist_ok=True)
                stored = {"latents": latents.detach().cpu().contiguous()}
                with replacing(self._path(i)) as partial:
                    save_file(stored, partial, metadata={"run": self.key})
                self._stored = i + 1
            yield latents

    def _is_whole(self, index: int) -> bool:
        """Whether the piece is there, is not torn, and belongs to this run."""
        path = self._path(index)
        with suppress(OSError, SafetensorError), safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("run") == self.key
        return False

    def _tidy(self) -> None:
        """Remove all but the pieces that are stored, and the folder if there are none."""
        if not self.writes:
            return
        with suppress(OSError):  # the folder is not there
            pieces = {self._path(i) for i in range(self._stored)}
            for path in set(self.folder.iterdir()) - pieces:
                path.unlink()
            if not pieces:
                self.folder.rmdir()

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:06d}.safetensors"


def run_key(
    config: Mapping[str, Any],
    weights: Mapping[str, Path],
    source: str | Path,
    device: torch.device,
    dtype: torch.dtype,
    **settings: Any,
) -> dict[str, Any]:
    """What the VAE latents of a run depend on; files by their name, size and time."""
    described = ("compressor", "previewer", "vae", "refiner", "noise", "conditioning", "cascade")
    return {
        "source": file_identity(Path(source)),
        "config": {name: config.get(name) for name in described},
        "weights": {name: file_identity(path) for name, path in weights.items()},
        "device": device.type,
        "dtype": str(dtype),
        "torch": torch.__version__,
        **settings,
    }
