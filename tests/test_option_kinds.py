"""Every option that a shipped config could set, with values of kinds that it does not take."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import is_dataclass
from inspect import Parameter
from types import NoneType

import pytest

from diffusion.config import ROOT, load_config
from diffusion.models import MODELS
from diffusion.noise.gaussian import GaussianDiffusion
from diffusion.noise.sampling import Sampling
from diffusion.pipelines import cascade_builder
from diffusion.pipelines.cascade_builder import (
    OF_SAMPLER,
    OF_SPEED,
    PARTS,
    Reconstruct,
    check_config,
)
from diffusion.pipelines.conditioning import Conditioning
from diffusion.pipelines.cut_options import TileSizes, Windows
from diffusion.registry import keyword_parameters, split_type
from diffusion.training.optimizers import DEFAULT_OPTIMIZER, OPTIMIZERS
from diffusion.training.train_options import TrainOptions
from diffusion.training.trainer_builder import DATA, DATA_RUNTIME, STAGES, check_training, wanted_by
from diffusion.training.validation import Validation
from diffusion.utils.compute import Compute
from diffusion.utils.errors import ConfigError
from diffusion.utils.kinds import members

CONFIGS = {
    path.stem: load_config(path)
    for path in sorted((ROOT / "configs").rglob("*.py"))
    if path.parent.name != "_base_"
}
for config in CONFIGS.values():
    if "train" in config:
        config["train"].setdefault("optimizer", DEFAULT_OPTIMIZER)
DICT = {"no": "option"}

Options = Iterator[tuple[str, Parameter]]


def options_of(target, where: str, without=()) -> Options:
    """Dotted keys of what a constructor takes, into the dataclasses among it."""
    for name, parameter in keyword_parameters(target).items():
        if name in without:
            continue
        yield f"{where}.{name}", parameter
        for kind in filter(is_dataclass, members(parameter.annotation)):
            yield from options_of(kind, f"{where}.{name}")


def cascade_options(config) -> Options:
    for name in PARTS:
        yield from options_of(split_type(MODELS, config[name], name)[0], name)
    yield from options_of(GaussianDiffusion, "noise")
    yield from options_of(Conditioning, "conditioning", ["upsampling"])
    yield from options_of(Reconstruct, "reconstruct")
    for target in (Windows, TileSizes):
        yield from options_of(target, "cascade")
    for key, parameter in keyword_parameters(Sampling).items():
        if key in OF_SAMPLER:
            yield f"cascade.{key}", parameter
    yield from options_of(Compute, f"cascade.{OF_SPEED}")


def training_options(config) -> Options:
    stage, _ = split_type(STAGES, config["train"]["stage"], "train.stage")
    yield from options_of(stage, "train.stage", wanted_by(stage, ()))
    yield from options_of(TrainOptions, "train")
    optimizer, _ = split_type(OPTIMIZERS, config["train"]["optimizer"], "train.optimizer")
    yield from options_of(optimizer, "train.optimizer", ["params", "lr"])
    data, _ = split_type(DATA, config["data"], "data")
    yield from options_of(data, "data", wanted_by(data, DATA_RUNTIME))
    if "validation" in config:
        yield from options_of(Validation, "validation", ["training_list"])


def wrong_values(parameter: Parameter) -> list[object]:
    """Told by the default, which says what is right, and for None by the annotation."""
    default, wrong = parameter.default, []
    if isinstance(default, bool):
        wrong = ["wrong", 1, [True]]
    elif isinstance(default, int):
        wrong = ["wrong", [2.5], True]
        if parameter.annotation is not float and "float" not in str(parameter.annotation):
            wrong += [2.5]
    elif isinstance(default, float):
        wrong = ["wrong", [0.5], True]
    elif isinstance(default, str):
        wrong = [3, ["wrong"], True]
    elif isinstance(default, tuple | list):
        wrong = [2.5, DICT, [DICT]]
    elif default is None or default is Parameter.empty:
        wrong = [DICT, [DICT]]
    if NoneType not in members(parameter.annotation) and default is not None:
        wrong += [None]
    return wrong


def with_value(config, path: str, value):
    config = deepcopy(config)
    *sections, key = path.split(".")
    holder = config
    for section in sections:
        if holder.get(section) is None:
            holder[section] = {}
        holder = holder[section]
    holder[key] = value
    return config


def cases() -> Iterator[tuple[str, str, object]]:
    seen = set()
    for name, config in CONFIGS.items():
        trained = training_options(config) if "train" in config else ()
        for path, parameter in [*cascade_options(config), *trained]:
            if (path, str(parameter)) not in seen:
                seen.add((path, str(parameter)))
                yield from ((name, path, value) for value in wrong_values(parameter))


CASES = list(cases())


def test_the_walk_reaches_what_it_should():
    paths = {path for _, path, _ in CASES}
    assert len(paths) > 140
    for path in (
        *("refiner.hidden_size", "vae.posterior_std", "noise.min_snr_gamma", "conditioning.scale"),
        *("cascade.window", "cascade.compute.tf32", "reconstruct.steps", "data.policy"),
        *("train.loop.seed", "train.learning_rate.auto.base_batch", "train.stage.position_range"),
        *("train.optimizer.weight_decay", "train.fsdp.cpu_offload", "validation.interval"),
    ):
        assert path in paths


@pytest.mark.parametrize(("name", "path", "value"), CASES, ids=lambda value: str(value)[:40])
def test_a_value_of_a_wrong_kind_is_refused(name, path, value, monkeypatch):
    """In one line that names the key, by what the commands call, before anything is loaded."""
    monkeypatch.setattr(cascade_builder, "load_weights", pytest.fail)
    config = with_value(CONFIGS[name], path, value)
    check = check_training if "train" in config else check_config
    with pytest.raises(ConfigError) as caught:
        check(config)
    said = str(caught.value)
    assert "\n" not in said
    assert said.startswith(path) or f" in {path}" in said
