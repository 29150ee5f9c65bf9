"""Config -> trainer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion.data.clips import RandomClips
from diffusion.data.latent_cache import RandomLatents
from diffusion.pipelines.builder import PARTS, build_part
from diffusion.registry import Registry, build, call_with, keyword_parameters
from diffusion.training.stages import CompressorStage, RefinerStage, VAEStage
from diffusion.training.trainer import Trainer
from diffusion.utils.errors import ConfigError

STAGES = Registry("stage", [CompressorStage, RefinerStage, VAEStage])
DATA = Registry("data", [RandomClips, RandomLatents])


def build_trainer(config: Mapping[str, Any], work_dir: Path) -> Trainer:
    """The trainer that the config's `train`, `data` and `video_list` describe."""
    for key in ("train", "data", "video_list"):
        if key not in config:
            raise ConfigError(f"the config has no {key!r}; training needs it")
    options = dict(config["train"])
    stage_options = options.pop("stage", {})
    stage_class = STAGES.require(stage_options.get("type"), "train.stage")
    wanted = [name for name in PARTS if name in keyword_parameters(stage_class)]
    parts = {name: build_part(config, name) for name in wanted}
    return call_with(
        Trainer,
        options,
        "train",
        stage=build(STAGES, stage_options, "train.stage", **parts),
        batches=build(DATA, config["data"], "data", video_list=config["video_list"]),
        work_dir=work_dir,
    )
