"""Config -> trainer."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from diffusion.data.clips import RandomClips
from diffusion.data.latent_cache import RandomLatents
from diffusion.pipelines.builder import (
    PARTS,
    build_conditioning,
    build_noise,
    build_part,
    check_config,
)
from diffusion.pipelines.conditioning import Conditioning
from diffusion.registry import Registry, call_with, check_options, keyword_parameters, split_type
from diffusion.training.stages import CompressorStage, RefinerStage, VAEStage
from diffusion.training.trainer import Trainer
from diffusion.utils.errors import ConfigError

STAGES = Registry("stage", [CompressorStage, RefinerStage, VAEStage])
DATA = Registry("data", [RandomClips, RandomLatents])


def conditioning_of(config: Mapping[str, Any]) -> Conditioning:
    """The conditioning that sampling will use; of the networks it needs the sizes alone."""
    with torch.device("meta"):
        compressor, vae = build_part(config, "compressor"), build_part(config, "vae")
    return build_conditioning(config, compressor, vae)


# What a constructor may ask for by name -> how it is made from the config.
PROVIDERS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    **{name: partial(build_part, name=name) for name in PARTS},
    "noise": build_noise,
    "conditioning": conditioning_of,
    "video_list": lambda config: config["video_list"],
}


def build_trainer(
    config: Mapping[str, Any],
    work_dir: Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Trainer:
    """The trainer that the config's `train`, `data` and `video_list` describe."""
    for key in ("train", "data", "video_list"):
        if key not in config:
            raise ConfigError(f"the config has no {key!r}; training needs it")
    check_config(config)
    runtime = {"work_dir": work_dir, "device": device, "dtype": dtype}
    options = dict(config["train"])
    stage_options = options.pop("stage", {})
    check_options(Trainer, options, "train", [*runtime, "stage", "batches"])
    batches = provide(DATA, config["data"], "data", config)
    stage = provide(STAGES, stage_options, "train.stage", config)
    return call_with(Trainer, options, "train", stage=stage, batches=batches, **runtime)


def provide(
    registry: Registry, options: Mapping[str, Any], where: str, config: Mapping[str, Any]
) -> Any:
    """Build from `options`, and from the rest of the config what the constructor asks for."""
    target, options = split_type(registry, options, where)
    wanted = PROVIDERS.keys() & keyword_parameters(target)
    check_options(target, options, where, wanted)
    return call_with(target, options, where, **{name: PROVIDERS[name](config) for name in wanted})
