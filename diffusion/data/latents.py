"""Latents files: a compressed video, or what another model generated, as safetensors."""

import json
import math
import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from diffusion.utils.errors import UserError, on_one_line
from diffusion.utils.files import replacing

KIND = "cascadev.latents"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class LatentsInfo:
    """What is needed to turn latents back into the video they came from.

    model: which model made them; only its own decoder can read them.
    fps: frames per second.
    height, width: of the original video.
    crop: (top, left, height, width), the part of the original that was encoded.
    padding: (bottom, right), pixels of the decoded video to cut off.
    """

    model: str
    fps: float
    height: int
    width: int
    crop: tuple[int, int, int, int]
    padding: tuple[int, int] = (0, 0)


def save_latents(
    path: str | os.PathLike[str],
    latents: Tensor,
    metadata: LatentsInfo,
    *,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write latents (1, C, F, h, w); `path` appears when the file is complete.

    Latents have about unit variance, so float16 loses nothing that matters. Values beyond its
    range are stored as float32.
    """
    path = Path(path)
    if latents.ndim != 5 or len(latents) != 1:
        raise ValueError(f"latents of shape {tuple(latents.shape)}: expected (1, C, F, h, w)")
    if not latents.isfinite().all():
        raise UserError(f"{path}: not written, the latents hold values that are not finite")
    if latents.abs().max() > torch.finfo(dtype).max:
        dtype = torch.float32
    header = _metadata(metadata, dtype)
    stored = latents.detach().to("cpu", dtype).contiguous()
    with replacing(path) as partial:
        save_file({"latents": stored}, partial, metadata=header)


class LatentsWriter:
    """A latents file that is written piece by piece, with its name only when it is complete.

        with LatentsWriter("x.safetensors", (1, 16, 300, 16, 20), info) as writer:
            for piece in pieces:  # (1, C, f, h, w)
                writer.write(piece)

    After an exception, and where frames are missing at the end, an older file stays as it was.
    """

    def __init__(self, path: str | os.PathLike[str], shape: Sequence[int], metadata: LatentsInfo):
        """shape: of the whole, (1, C, F, h, w)."""
        self.path, self.shape, self.num_frames = Path(path), tuple(shape), 0
        self._header = _file_header(self.shape, metadata)

    def __enter__(self) -> "LatentsWriter":
        with ExitStack() as stack:
            partial = stack.enter_context(replacing(self.path))
            self._file = stack.enter_context(partial.open("wb"))
            self._file.write(self._header)
            self._closing = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._closing:
            if error is not None:
                raise error
            if self.num_frames < self.shape[2]:
                raise UserError(
                    f"{self.path}: not written, only {self.num_frames} of {self.shape[2]} frames "
                    "came; is the video damaged?"
                )

    def write(self, latents: Tensor) -> None:
        """Append (1, C, f, h, w)."""
        _, channels, frames, *sides = self.shape
        left = frames - self.num_frames
        if latents.shape != (1, channels, min(latents.shape[2], left), *sides):
            raise ValueError(
                f"latents of shape {tuple(latents.shape)}, but {left} frames are left to write of "
                f"{self.shape}"
            )
        values = latents.detach().to("cpu", torch.float16)
        if not values.isfinite().all():
            raise UserError(f"{self.path}: not written, some latents are not finite in float16")
        frame_bytes = 2 * math.prod(sides)
        for channel in range(channels):
            position = (channel * frames + self.num_frames) * frame_bytes
            self._file.seek(len(self._header) + position)
            self._file.write(values[0, channel].contiguous().numpy().tobytes())
        self.num_frames += latents.shape[2]


class LatentsReader:
    """A latents file, of which as much is read as is asked for. Opening it checks its header.

    info: what the file says about the video. shape: (1, C, F, h, w).
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        with self._opened() as file:
            header = file.metadata() or {}
            if header.get("kind") != KIND or list(file.keys()) != ["latents"]:
                raise UserError(f"{self.path}: is a safetensors file, but does not hold latents")
            if header.get("format_version") != str(FORMAT_VERSION):
                raise UserError(
                    f"{self.path}: has format version {header.get('format_version')}, this "
                    f"program reads {FORMAT_VERSION}; update it"
                )
            self.shape = tuple(file.get_slice("latents").get_shape())
        if len(self.shape) != 5 or self.shape[0] != 1 or not math.prod(self.shape):
            raise UserError(f"{self.path}: latents of shape {self.shape}, not (1, C, F, h, w)")
        self.info = _parse_info(self.path, header)

    def chunks(self, size: int) -> Iterator[Tensor]:
        """(1, C, f, h, w) as float32 with f = size, the last one with what is left."""
        with self._opened() as file:
            stored = file.get_slice("latents")
            for start in range(0, self.shape[2], size):
                latents = stored[:, :, start : start + size].float()
                if not latents.isfinite().all():
                    raise UserError(f"{self.path}: holds values that are not finite")
                yield latents

    @contextmanager
    def _opened(self) -> Generator[Any]:
        try:
            if not self.path.is_file():
                raise UserError(f"{self.path}: there is no such latents file")
            with safe_open(self.path, framework="pt") as file:
                yield file
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{self.path}: cannot be read as latents ({on_one_line(error)})"
            ) from error


def load_latents(path: str | os.PathLike[str]) -> tuple[Tensor, LatentsInfo]:
    """Latents (1, C, F, h, w) as float32, and what the file says about them."""
    reader = LatentsReader(path)
    (latents,) = reader.chunks(reader.shape[2])
    return latents, reader.info


def _file_header(shape: tuple[int, ...], metadata: LatentsInfo) -> bytes:
    """The beginning of a safetensors file of float16 latents: what lies before the values."""
    entry = {"dtype": "F16", "shape": shape, "data_offsets": [0, 2 * math.prod(shape)]}
    text = json.dumps({"__metadata__": _metadata(metadata, torch.float16), "latents": entry})
    text += -len(text) % 8 * " "  # values begin at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text.encode()


def _metadata(metadata: LatentsInfo, dtype: torch.dtype) -> dict[str, str]:
    header = {name: json.dumps(value) for name, value in asdict(metadata).items()}
    return header | {"kind": KIND, "format_version": str(FORMAT_VERSION), "dtype": str(dtype)}


def _parse_info(path: Path, header: dict[str, str]) -> LatentsInfo:
    try:
        values = {field.name: json.loads(header[field.name]) for field in fields(LatentsInfo)}
        top, left, crop_height, crop_width = map(int, values["crop"])
        bottom, right = map(int, values["padding"])
        info = LatentsInfo(
            model=str(values["model"]),
            fps=float(values["fps"]),
            height=int(values["height"]),
            width=int(values["width"]),
            crop=(top, left, crop_height, crop_width),
            padding=(bottom, right),
        )
    except KeyError as error:
        raise UserError(f"{path}: its header lacks {error}; encode the video again") from error
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: its header is damaged ({on_one_line(error)})") from error
    sizes = (info.fps, info.height, info.width, crop_height, crop_width)
    if not all(0 < size < 1e6 for size in sizes) or min(top, left, bottom, right) < 0:
        raise UserError(f"{path}: its header is damaged (impossible sizes or frame rate)")
    return info
