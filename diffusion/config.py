"""Python config files with `_base_` inheritance. The only file that knows mmengine."""

import ast
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config as _Config
from mmengine.config import ConfigDict

from diffusion.registry import check_keys
from diffusion.utils.errors import ConfigError
from diffusion.utils.saved_cascade import INDEX, saved_config

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parent.parent
OLD_FILE = "config.py"  # of a saved cascade's folder, before there was an index

# Every key that may stand at the top level of a config, and what reads it.
TOP_LEVEL = {
    "model_id": "name written into latents files",
    "compressor": "semantic compressor",
    "previewer": "semantic latents -> preview video",
    "vae": "video VAE",
    "refiner": "diffusion transformer",
    "noise": "noise process",
    "conditioning": "what the refiner is told, and what it restores",
    "cascade": "options of Cascade",
    "reconstruct": "how the model is sampled, and what is taken of a clip",
    "weights": "part -> file, relative to the config's project or absolute",
    "video_list": "training videos",
    "data": "training data",
    "train": "stage, optimizer and loop of tools/train.py",
    "validation": "clips reconstructed while training",
}

# Dotted keys of older configs -> where their value stands now.
MOVED: dict[str, str] = {
    "train.lr": "train.learning_rate.peak",
    "train.auto_lr": "train.learning_rate.auto",
    "train.lr_scheduler": "train.learning_rate.schedule",
    "train.warmup_steps": "train.learning_rate.warmup_steps",
    "train.max_steps": "train.loop.max_steps",
    "train.gradient_accumulation": "train.loop.gradient_accumulation",
    "train.gradient_clip": "train.loop.gradient_clip",
    "train.ema_decay": "train.loop.ema_decay",
    "train.log_interval": "train.loop.log_interval",
    "train.num_workers": "train.loop.num_workers",
    "train.seed": "train.loop.seed",
    "train.save_interval": "train.saving.interval",
    "train.keep_last": "train.saving.keep_last",
    "train.keep_every": "train.saving.keep_every",
}


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> ConfigDict:
    """Read a config file, or what a saved cascade's folder says; `overrides` are "key=value" with
    dotted keys and Python values.

    Raises ConfigError for a file that is missing or does not run, for an override that cannot be
    read, for a key that has moved, and for one at the top level that nothing reads. (What is
    further down is checked by `check_config` and `check_training`, against the constructors that
    take it.) A config is Python code: run only your own.
    """
    path = Path(path)
    if not path.is_file() and (ROOT / path).is_file():
        path = ROOT / path
    config = _of_folder(path) if path.is_dir() else _of_file(path)
    for key, value in map(parse_override, overrides):
        try:
            config.merge_from_dict({key: value})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"--cfg-options {key}: does not fit what the config holds there; set a whole list "
                "or value, not a part of it"
            ) from error
    values = ConfigDict({key: config[key] for key in config if not key.startswith("_")})
    check_moved(values)
    check_keys(values, TOP_LEVEL, f"config {path.name}")
    return values


def _of_file(path: Path) -> _Config:
    if not path.is_file():
        raise ConfigError(f"{path}: no such config file; see configs/")
    try:
        return _Config.fromfile(str(path), lazy_import=False)
    except Exception as error:  # whatever the file's code raises
        raise ConfigError(
            f"{path}: the config does not run: {type(error).__name__}: {error}"
        ) from error


def _of_folder(folder: Path) -> _Config:
    if (folder / INDEX).is_file() or not (folder / OLD_FILE).is_file():
        return _Config(saved_config(folder))
    log.info(
        "%s was saved by an older version: its %s is code, and was run; save it again, by "
        "tools/convert_checkpoint.py",
        *(folder, OLD_FILE),
    )
    config = _of_file(folder / OLD_FILE)
    # its weights lie beside it, whatever it says
    config["weights"] = {file.stem: str(file) for file in folder.glob("*.safetensors")}
    return config


def check_moved(values: Mapping[str, Any], moved: Mapping[str, str] = MOVED) -> None:
    """Refuse the keys of older configs, and say where their values stand now."""
    for old, new in moved.items():
        *path, last = old.split(".")
        holder: Any = values
        for key in path:
            holder = holder.get(key) if isinstance(holder, Mapping) else None
        if isinstance(holder, Mapping) and last in holder:
            raise ConfigError(f"{old} is now {new}; change it in the config or --cfg-options")


def parse_override(text: str) -> tuple[str, Any]:
    """'refiner.depth=4' -> ("refiner.depth", 4); a value that is no Python literal is a string."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--cfg-options {text!r} is not of the form key=value")
    try:
        return key.strip(), ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key.strip(), value


def dump_config(config: Mapping[str, Any]) -> str:
    """The config as Python source that load_config reads back to the same values."""
    return _Config(dict(config)).pretty_text


def resolve(path: str | Path) -> Path:
    """A path in a config: absolute, else relative to the working directory, else to the project."""
    path = Path(path).expanduser()
    return path if path.is_absolute() or path.exists() else ROOT / path
