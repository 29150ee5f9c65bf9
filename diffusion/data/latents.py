"""Latents files: a compressed video, or what another model generated, as safetensors."""

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from diffusion.utils.errors import UserError
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
    header = {name: json.dumps(value) for name, value in asdict(metadata).items()}
    header |= {"kind": KIND, "format_version": str(FORMAT_VERSION), "dtype": str(dtype)}
    stored = latents.detach().to("cpu", dtype).contiguous()
    with replacing(path) as partial:
        save_file({"latents": stored}, partial, metadata=header)


def load_latents(path: str | os.PathLike[str]) -> tuple[Tensor, LatentsInfo]:
    """Latents (1, C, F, h, w) as float32, and what the file says about them."""
    path = Path(path)
    try:
        if not path.is_file():
            raise UserError(f"{path}: there is no such latents file")
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("kind") != KIND or list(file.keys()) != ["latents"]:
                raise UserError(f"{path}: is a safetensors file, but does not hold latents")
            if header.get("format_version") != str(FORMAT_VERSION):
                raise UserError(
                    f"{path}: has format version {header.get('format_version')}, this program "
                    f"reads {FORMAT_VERSION}; update it"
                )
            latents = file.get_tensor("latents").float()
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read as latents ({_one_line(error)})") from error
    if latents.ndim != 5 or len(latents) != 1 or not latents.numel():
        raise UserError(f"{path}: latents of shape {tuple(latents.shape)}, not (1, C, F, h, w)")
    if not latents.isfinite().all():
        raise UserError(f"{path}: holds values that are not finite")
    return latents, _parse_info(path, header)


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
        raise UserError(f"{path}: its header is damaged ({_one_line(error)})") from error
    sizes = (info.fps, info.height, info.width, crop_height, crop_width)
    if not all(0 < size < 1e6 for size in sizes) or min(top, left, bottom, right) < 0:
        raise UserError(f"{path}: its header is damaged (impossible sizes or frame rate)")
    return info


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
