"""Configs -> objects. Nothing below this file reads a config."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from diffusion.models import MODELS
from diffusion.registry import build
from diffusion.utils.errors import ConfigError

PARTS = ("compressor", "previewer", "vae", "refiner")


def build_part(config: Mapping[str, Any], name: str) -> nn.Module:
    """One network of the cascade, with random weights."""
    if name not in config:
        raise ConfigError(f"the config has no {name!r}")
    return build(MODELS, config[name], name)
