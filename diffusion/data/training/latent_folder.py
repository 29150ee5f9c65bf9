"""A folder of encoded training clips: shards, their index, and what they were made with."""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffusion.utils.errors import UserError
from diffusion.utils.files import locked, make_folder, replacing, write_json

log = logging.getLogger(__name__)

INDEX = "index.jsonl"
MADE_WITH = "made_with.json"
UNTOLD = ("--dtype",)  # what folders of older versions do not say: it is believed, with a note
PIECES = "pieces"  # folder of the clips that are in no shard yet


@dataclass(frozen=True)
class LatentClip:
    """One line of the index.

    clip: its name; tensors in the shard are called clip.target, clip.semantic, clip.base.
    shard: file in the folder.
    source: the video.
    frames, height, width: of the VAE latents.
    upsampling: how often the semantic latents fit into them, per side.
    """

    clip: str
    shard: str
    source: str
    frames: int
    height: int
    width: int
    upsampling: int


class LatentFolder:
    """Writes encoded clips so that a kill at any time loses none that `add` has returned for.

    A clip is a file of its own until there are `shard_clips` of them, which then become a shard.
    Shards say in their headers what they hold; the index is made from these. Several processes may
    add different clips to one folder.

    made_with: what the latents depend on; a folder made with something else is refused.
    """

    def __init__(self, folder: str | Path, made_with: Mapping[str, str], shard_clips: int):
        self.folder, self.shard_clips = make_folder(folder), shard_clips
        self._pieces = make_folder(self.folder / PIECES)
        self._lock = self.folder / ".lock"
        with locked(self._lock):
            check_made_with(self.folder, made_with)
        self._packed = {clip.clip for clip in self._shards()}
        self._waiting: dict[str, str] = {}  # clip -> source, in no shard yet

    def has(self, clip: str, source: str) -> bool:
        """Whether the clip is there; if so, it will be packed with those added."""
        if clip in self._packed:
            return True
        if self._piece(clip).exists():
            self._take(clip, source)
            return True
        return False

    def add(self, clip: str, source: str, tensors: Mapping[str, Tensor]) -> None:
        """tensors: (C, F, h, w) by the names of LatentBatch; stored as float16."""
        stored = {name: t.to("cpu", torch.float16).contiguous() for name, t in tensors.items()}
        with replacing(self._piece(clip)) as partial:
            save_file(stored, partial)
        self._take(clip, source)

    def finish(self) -> int:
        """Pack what is left, and write the index; how many clips the folder has."""
        self._pack()
        with locked(self._lock):  # who comes last sees the shards of all
            clips = self._shards()
            with replacing(self.folder / INDEX) as partial:
                partial.write_text("".join(json.dumps(asdict(clip)) + "\n" for clip in clips))
        return len(clips)

    def _piece(self, clip: str) -> Path:
        return self._pieces / f"{clip}.safetensors"

    def _take(self, clip: str, source: str) -> None:
        self._waiting[clip] = source
        if len(self._waiting) >= self.shard_clips:
            self._pack()

    def _pack(self) -> None:
        if not self._waiting:
            return
        shard = f"{next(iter(self._waiting))}.safetensors"
        tensors: dict[str, Tensor] = {}
        described = []
        for clip, source in self._waiting.items():
            piece = load_piece(self._piece(clip))
            tensors |= {f"{clip}.{name}": tensor for name, tensor in piece.items()}
            _, frames, height, width = piece["target"].shape
            upsampling = height // piece["semantic"].shape[2]
            described.append(
                asdict(LatentClip(clip, shard, source, frames, height, width, upsampling))
            )
        with replacing(self.folder / shard) as partial:
            save_file(tensors, partial, metadata={"clips": json.dumps(described)})
        for clip in self._waiting:
            self._piece(clip).unlink(missing_ok=True)
            for place in (self.folder, self._pieces):  # of processes that were killed
                for partial in place.glob(f".{clip}.safetensors.*.partial"):
                    partial.unlink(missing_ok=True)
        self._packed |= self._waiting.keys()
        self._waiting = {}

    def _shards(self) -> list[LatentClip]:
        """What the headers of all shards say. A clip's piece is dropped once it is in a shard."""
        clips = []
        for path in sorted(self.folder.glob("*.safetensors")):
            clips += read_header(path)
        for clip in clips:
            self._piece(clip.clip).unlink(missing_ok=True)
        return clips


def check_made_with(folder: Path, made_with: Mapping[str, str]) -> None:
    """Note in an empty folder what its latents depend on; UserError if that was something else."""
    old = read_made_with(folder)
    if old is not None:
        untold = {key: made_with[key] for key in UNTOLD if key in made_with and key not in old}
        for key in {**old, **made_with}:
            if key not in untold and old.get(key) != made_with.get(key):
                raise UserError(
                    f"{folder}: was made with {key} {old.get(key)}, not {made_with.get(key)}; "
                    "choose another --output, or delete it"
                )
        for key, value in untold.items():
            log.warning("%s: is older than the record of %s; taken for %s", folder, key, value)
    write_json(folder / MADE_WITH, dict(made_with))


def read_made_with(folder: Path) -> dict[str, str] | None:
    """None if nothing is in the folder."""
    file = folder / MADE_WITH
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        if any(folder.glob("*.safetensors")):
            raise UserError(
                f"{folder}: holds files of another kind; choose another --output"
            ) from None
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read; choose another --output") from error


def load_piece(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: is damaged; delete it and run the command again") from error


def read_header(shard: Path) -> list[LatentClip]:
    try:
        with safe_open(shard, framework="pt") as file:
            clips = json.loads((file.metadata() or {})["clips"])
        return [LatentClip(**clip) for clip in clips]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise unreadable_shard(shard) from error


def unreadable_shard(path: Path) -> UserError:
    return UserError(
        f"{path}: is no readable shard; delete it and run tools/prepare_latents.py again"
    )


def clip_name(video: Path, number: int) -> str:
    """Of the video's clip with this number, from 0: the same from whatever folder it is named."""
    return f"{hashlib.sha256(str(video.resolve()).encode()).hexdigest()[:16]}-{number}"


def read_index(folder: Path) -> list[LatentClip]:
    file = folder / INDEX
    encode = f"run: .venv/bin/python tools/prepare_latents.py CONFIG --output {folder}"
    try:
        lines = file.read_text().splitlines()
        clips = [LatentClip(**json.loads(line)) for line in lines]
    except FileNotFoundError as error:
        raise UserError(f"{folder}: holds no encoded clips; {encode}") from error
    except (OSError, TypeError, ValueError) as error:
        raise UserError(f"{file}: is damaged; delete it and {encode}") from error
    if not clips:
        raise UserError(f"{file}: names no clips; {encode}")
    return clips
