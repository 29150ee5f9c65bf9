"""Config -> trainer."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed

from diffusion.config import resolve
from diffusion.data.training.random_clips import RandomClips
from diffusion.data.training.random_latents import RandomLatents
from diffusion.data.training.video_clips import VideoClips
from diffusion.models.weights import check_exists
from diffusion.pipelines.cascade_builder import (
    PARTS,
    build_conditioning,
    build_noise,
    build_part,
    check_config,
    check_weights,
)
from diffusion.pipelines.conditioning import Conditioning
from diffusion.registry import (
    Registry,
    call_with,
    check_options,
    keyword_parameters,
    read_value,
    split_type,
)
from diffusion.training.processes import join_processes
from diffusion.training.stages.autoencoder_stages import CompressorStage, VAEStage
from diffusion.training.stages.decoder_stage import DecoderStage
from diffusion.training.stages.distillation_stage import DistillationStage
from diffusion.training.stages.frozen import FrozenNetworks
from diffusion.training.stages.picture_stage import OneStepStage, PictureStage
from diffusion.training.stages.refiner_stage import JointStage, RefinerStage
from diffusion.training.stages.stage import Stage
from diffusion.training.train_options import read_train_options
from diffusion.training.trainer import Trainer
from diffusion.training.validation import Validation
from diffusion.utils.errors import ConfigError

STAGES = Registry(
    "stage",
    [
        CompressorStage,
        DecoderStage,
        DistillationStage,
        JointStage,
        OneStepStage,
        PictureStage,
        RefinerStage,
        VAEStage,
    ],
)
DATA = Registry(
    "data",
    [RandomClips, RandomLatents, VideoClips],
    aliases={"clips": VideoClips, "latents": RandomLatents},
)

# Options of stages that name files of weights.
STARTING_WEIGHTS = ("init_from", "teacher")
# Arguments of constructors that no config holds.
DATA_RUNTIME = ("rank", "world_size", "bad_list")


def conditioning_of(config: Mapping[str, Any]) -> Conditioning:
    """The conditioning that sampling will use; of the networks it needs the sizes alone."""
    with torch.device("meta"):
        compressor, vae = build_part(config, "compressor"), build_part(config, "vae")
    return build_conditioning(config, compressor, vae)


# What a constructor may ask for by name -> how it is made from the config.
PROVIDERS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    **{name: partial(build_part, name=name) for name in PARTS},
    "networks": FrozenNetworks,
    "noise": build_noise,
    "conditioning": conditioning_of,
    "video_list": lambda config: config["video_list"],
}


def check_training(config: Mapping[str, Any]) -> None:
    """Refuse what nothing reads or what is missing, before anything is loaded."""
    for key in ("train", "data", "video_list"):
        if key not in config:
            raise ConfigError(f"the config has no {key!r}; training needs it")
    check_config(config)
    read_value(config["video_list"], Sequence[str] | str, "video_list")
    read_value(config["train"], Mapping[str, Any], "train")
    train = dict(config["train"])
    check_provided(STAGES, train.pop("stage", {}), "train.stage")
    read_train_options(train)
    check_provided(DATA, config["data"], "data", DATA_RUNTIME)
    if "validation" in config:
        check_options(Validation, config["validation"], "validation", ["training_list"])
    with torch.device("meta"):  # no memory, whatever the size
        for name in PARTS:
            if name in config:
                build_part(config, name)


def check_files(config: Mapping[str, Any], *, networks: bool = True) -> None:
    """Refuse a training whose weights are not there, before anything is built.

    networks: look also for those of the networks beside the trained ones.
    """
    stage = config["train"]["stage"]
    for name in STARTING_WEIGHTS:
        if stage.get(name) is not None:
            check_exists(resolve(stage[name]), f"train.stage.{name}")
    target, _ = split_type(STAGES, stage, "train.stage")
    if not networks or "networks" not in keyword_parameters(target):
        return
    data, _ = split_type(DATA, config["data"], "data")
    if data is not RandomLatents or "validation" in config:
        check_weights(config, needed_networks(config, target))


def needed_networks(config: Mapping[str, Any], stage: type[Stage]) -> list[str]:
    """The networks that a stage reads from the config's `weights`."""
    previews = config.get("conditioning", {}).get("residual_std") is not None
    names = ["compressor", *(["previewer"] if previews else []), "vae", *stage.more_networks]
    return list(dict.fromkeys(names))


def build_trainer(
    config: Mapping[str, Any],
    work_dir: Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Trainer:
    """The trainer that the config's `train`, `data`, `validation` and `video_list` describe."""
    check_training(config)
    check_files(config)
    options = read_train_options(config["train"])
    processes = join_processes(torch.device(device))
    runtime = {
        "rank": processes.process_index,
        "world_size": processes.num_processes,
        "bad_list": Path(work_dir) / "bad_videos.txt",
    }
    batches = provide(DATA, config["data"], "data", config, runtime)
    set_seed(options.loop.seed)  # the same first weights every time and in all processes
    return Trainer(
        stage=provide(STAGES, config["train"]["stage"], "train.stage", config),
        batches=batches,
        work_dir=work_dir,
        options=options,
        batch_size=config["data"].get("batch_size"),
        validation=build_validation(config),
        config=config,
        device=device,
        dtype=dtype,
    )


def build_validation(config: Mapping[str, Any]) -> Validation | None:
    if "validation" not in config:
        return None
    training_list = config["video_list"]
    return call_with(Validation, config["validation"], "validation", training_list=training_list)


def wanted_by(target: Callable, runtime: Iterable[str]) -> set[str]:
    """Names of the arguments that are made for a constructor rather than read from a config."""
    return {*PROVIDERS, *runtime} & keyword_parameters(target).keys()


def check_provided(
    registry: Registry, options: Mapping[str, Any], where: str, runtime: Iterable[str] = ()
) -> None:
    target, options = split_type(registry, options, where)
    check_options(target, options, where, wanted_by(target, runtime))


def provide(
    registry: Registry,
    options: Mapping[str, Any],
    where: str,
    config: Mapping[str, Any],
    runtime: Mapping[str, Any] | None = None,
) -> Any:
    """Build from `options`, and from the rest of the config what the constructor asks for.

    runtime: arguments for it that no config holds, if it asks for them.
    """
    target, options = split_type(registry, options, where)
    runtime = runtime or {}
    wanted = wanted_by(target, runtime)
    check_options(target, options, where, wanted)
    given = {name: value for name, value in runtime.items() if name in wanted}
    # In one order, not that of a set: networks draw their first weights from one generator.
    given |= {name: make(config) for name, make in PROVIDERS.items() if name in wanted}
    return call_with(target, options, where, **given)
