"""Weights on disk: reading ours and the published ones, writing safetensors.

Foreign files become state dicts with our names here and nowhere else; the pickle of the published
DiT is the only one that is ever read, and only as `weights_only`.
"""

import json
import logging
import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from diffusion.utils.errors import WeightsError, on_one_line
from diffusion.utils.files import finish_replacing, make_folder, replacing_together

log = logging.getLogger(__name__)

StateDict = dict[str, Tensor]

CHECKPOINT_SUFFIXES = (".pth", ".pt")
# The weights of a diffusers model folder, such as Stable Video Diffusion's `vae`, best first. Large
# ones are in several files, and an index says in which.
FOLDER_FILE = "diffusion_pytorch_model"
FOLDER_FILES = (f"{FOLDER_FILE}.safetensors", f"{FOLDER_FILE}.fp16.safetensors")
FOLDER_INDEXES = (
    f"{FOLDER_FILE}.safetensors.index.json",
    f"{FOLDER_FILE}.safetensors.index.fp16.json",
)
# Position tables that training code stored in checkpoints; ours are computed.
POSITION_KEYS = ("pos_embed", "base_model.pos_embed", "model.pos_embed")
# The layer of the transformer that sees the condition.
INPUT_LAYER = "x_embedder.proj.weight"
NAMES_SHOWN = 3


def load_weights(module: nn.Module, path: str | Path, *, use_ema: bool = False) -> None:
    """Fill `module` from a file or folder (see `read_state_dict`); the names must match exactly.

    Floating-point values are cast to the module's dtype. A module whose weights do not fit is left
    as it was.
    """
    state = read_state_dict(path, use_ema=use_ema)
    check_fits(module, state, path)
    module.load_state_dict(state)


def load_as_stored(module: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Fill `module`, which takes the number format of `state`; `source` is named in errors."""
    check_fits(module, state, source)
    floating = [value.dtype for value in state.values() if value.is_floating_point()]
    if floating:
        module.to(floating[0])
    module.load_state_dict(state)


def load_initial_weights(module: nn.Module, path: str | Path) -> None:
    """`load_weights` for the start of a training: the file may know fewer input channels.

    The module's last channels are then new. Their weights are zero, so that it computes at first
    what the file's model computes, whatever comes in there.
    """
    state = read_state_dict(path)
    wanted, stored = module.state_dict().get(INPUT_LAYER), state.get(INPUT_LAYER)
    if wanted is not None and stored is not None:
        state[INPUT_LAYER] = widened(stored, torch.zeros_like(wanted), axis=1)
    check_fits(module, state, path)
    module.load_state_dict(state)
    log.info("starting from %s", path)
    if wanted is not None and stored is not None and wanted.shape != stored.shape:
        total, new = wanted.shape[1], wanted.shape[1] - stored.shape[1]
        log.info("%d of the %d input channels are new and start at zero", new, total)


def widened(stored: Tensor, wanted: Tensor, axis: int) -> Tensor:
    """`stored` plus what it lacks along `axis`, of `wanted`, which must be alike elsewhere."""
    sizes = zip(stored.shape, wanted.shape, strict=False)
    differing = [i for i, (have, want) in enumerate(sizes) if have != want]
    missing = wanted.shape[axis] - stored.shape[axis] if differing == [axis] else 0
    if missing <= 0 or stored.ndim != wanted.ndim:
        return stored
    return torch.cat([stored, wanted.narrow(axis, stored.shape[axis], missing)], axis)


def read_state_dict(path: str | Path, *, use_ema: bool = False) -> StateDict:
    """The tensors of a file, on the CPU, under our names.

    path: a safetensors file, the published DiT (`.pth`), or a local diffusers model folder.
    use_ema: the averaged weights of a `.pth`.
    """
    path = Path(path)
    files = _files_in_folder(path) if path.is_dir() else [path]
    finish_replacing(files[0].parent)
    if use_ema and path.suffix not in CHECKPOINT_SUFFIXES:
        raise WeightsError(f"{path}: only a .pth checkpoint can hold averaged (EMA) weights")
    state = {}
    for file in files:
        state |= _read_file(file, use_ema)
    return state


def _read_file(path: Path, use_ema: bool) -> StateDict:
    if not path.exists():
        raise WeightsError(f"{path}: no such weights file; {_remedy(path)}")
    if path.suffix in CHECKPOINT_SUFFIXES:
        return adapt_dit_state_dict(_read_checkpoint(path, use_ema))
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(_unreadable(path, "safetensors file", error)) from error


def check_exists(path: str | Path, where: str) -> None:
    """Refuse a file or folder of weights that is not there; `where` is its key in a config."""
    if not Path(path).exists():
        raise WeightsError(f"{where}={path}: no such weights file; {_remedy(Path(path))}")


def adapt_dit_state_dict(state: Mapping[str, Tensor]) -> StateDict:
    """A published DiT's state dict -> ours: the same names, without the position tables."""
    return {key: value for key, value in state.items() if key not in POSITION_KEYS}


def check_fits(module: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Refuse a state dict that is not exactly the module's; `source` is named in the error."""
    own, kind = module.state_dict(), type(module).__name__
    missing = [key for key in own if key not in state]
    check_names(kind, missing, [key for key in state if key not in own], source)
    wrong = [key for key in state if state[key].shape != own[key].shape]
    if wrong:
        others = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise WeightsError(
            f"{source}: {wrong[0]} is {_shape(state[wrong[0]])} but this {kind} needs "
            f"{_shape(own[wrong[0]])}{others}; check that the file and the config belong together"
        )


def check_names(
    kind: str, missing: Iterable[str], unexpected: Iterable[str], source: str | Path
) -> None:
    """Refuse weights that lack what a network of this kind has, or have what it lacks."""
    # Batch norms count their training batches for nobody, and older files lack the counters.
    needed = [key for key in missing if not key.endswith(".num_batches_tracked")]
    problems = [
        f"{len(keys)} {label} ({_first(keys)})"
        for label, keys in (("missing", needed), ("unexpected", list(unexpected)))
        if keys
    ]
    if problems:
        raise WeightsError(
            f"{source}: not the weights of this {kind}: {' and '.join(problems)}; "
            "check that the file and the config belong together"
        )


def save_weights(
    weights: nn.Module | Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str]
) -> None:
    """Write safetensors, with `metadata` in the header; the final name never holds half a file."""
    path = Path(path)
    save_weights_together(path.parent, {path.name: (weights, metadata)})


def save_weights_together(
    folder: str | Path,
    files: Mapping[str, tuple[nn.Module | Mapping[str, Tensor], Mapping[str, str]]],
) -> None:
    """`save_weights` of several files of a folder: whatever happens, all are new or none.

    files: name -> weights and metadata.
    """
    folder = make_folder(folder)
    with replacing_together(folder, list(files)) as partials:
        for (weights, metadata), partial in zip(files.values(), partials, strict=True):
            state = weights.state_dict() if isinstance(weights, nn.Module) else weights
            state = {key: value.detach().cpu().contiguous() for key, value in state.items()}
            safetensors.torch.save_file(state, partial, metadata=dict(metadata))


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata in a safetensors header; the tensors are not read."""
    path = Path(path)
    finish_replacing(path.parent)
    if not path.exists():
        raise WeightsError(f"{path}: no such weights file; {_remedy(path)}")
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise WeightsError(_unreadable(path, "safetensors file", error)) from error


def _files_in_folder(folder: Path) -> list[Path]:
    for name, index in zip(FOLDER_FILES, FOLDER_INDEXES, strict=True):
        if (folder / name).exists():
            return [folder / name]
        if (folder / index).exists():
            return _shards(folder / index)
    raise WeightsError(f"{folder}: holds no {' or '.join(FOLDER_FILES)}; {_remedy(folder)}")


def _shards(index: Path) -> list[Path]:
    """The files that an index of diffusers names, which lie beside it."""
    try:
        names = set(json.loads(index.read_text())["weight_map"].values())
        return [index.parent / Path(name).name for name in sorted(names)]
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise WeightsError(_unreadable(index, "index of weights", error)) from error


def _read_checkpoint(path: Path, use_ema: bool) -> StateDict:
    """The state dict in a training checkpoint, or a bare one."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle can raise nearly anything
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and refused:
            raise WeightsError(
                f"{path}: holds a Python object ({refused[1]}) beside tensors and was refused, "
                "because loading it could run code; ask its author for safetensors"
            ) from error
        raise WeightsError(_unreadable(path, "PyTorch checkpoint", error)) from error

    name = "state_dict_ema" if use_ema else "state_dict"
    if isinstance(checkpoint, dict) and (name in checkpoint or use_ema):
        if name not in checkpoint:
            raise WeightsError(f"{path}: holds no averaged weights ({name}); leave EMA off")
        checkpoint = checkpoint[name]
    if not isinstance(checkpoint, dict):
        raise WeightsError(f"{path}: holds a {type(checkpoint).__name__}, not a state dict")
    others = [key for key, value in checkpoint.items() if not isinstance(value, Tensor)]
    if others:
        raise WeightsError(f"{path}: holds no state dict; not tensors: {_first(others)}")
    return dict(checkpoint)


def _unreadable(path: Path, kind: str, error: Exception) -> str:
    reason = f"{type(error).__name__}: {first_sentence(error)}".rstrip(": ")
    return f"{path}: not a readable {kind} ({reason}); it may be cut short, so fetch it again"


def first_sentence(error: Exception) -> str:
    """The first sentence of what an error says."""
    return on_one_line(error).split(". ")[0].removesuffix(".")


def _remedy(path: Path) -> str:
    # pretrained/compact is part of the repository; nothing downloads it.
    if "pretrained" in path.absolute().parts and "compact" not in path.parts:
        return "run `bash pretrained/download.sh` to fetch the published weights"
    return "check the path"


def _first(keys: list[str]) -> str:
    shown = ", ".join(map(str, keys[:NAMES_SHOWN]))
    return f"{shown}, ..." if len(keys) > NAMES_SHOWN else shown


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
