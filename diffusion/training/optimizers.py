"""Optimizers and learning-rate schedules by name."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from came_pytorch import CAME
from torch import nn, optim

from diffusion.registry import Registry, build, check_options, nearest, split_type
from diffusion.training.muon import Muon
from diffusion.utils.errors import ConfigError

OPTIMIZERS = Registry(
    "optimizer",
    [optim.AdamW, optim.Adam, optim.NAdam, optim.RAdam, optim.RMSprop, optim.SGD]
    + [optim.Adafactor, CAME, Muon],
)
DEFAULT_OPTIMIZER = {"type": "AdamW", "weight_decay": 0.01, "betas": (0.9, 0.99)}
NEED_WHOLE_WEIGHTS = ("Adafactor", "CAME", "Muon")  # for means over rows and columns, products
GIVEN = ("params", "lr")  # arguments of an optimizer that its options do not hold


def check_optimizer(options: Mapping[str, Any]) -> None:
    check_options(*split_type(OPTIMIZERS, options, "train.optimizer"), "train.optimizer", GIVEN)


def build_optimizer(
    options: Mapping[str, Any], parameters: Iterable[nn.Parameter], lr: float
) -> optim.Optimizer:
    """The optimizer that `type` names; the published model was trained with CAME's defaults."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return build(OPTIMIZERS, options, "train.optimizer", params=trained, lr=lr)


def constant(step: int, max_steps: int) -> float:
    """The published schedule."""
    return 1.0


def cosine(step: int, max_steps: int, final: float = 0.02) -> float:
    """Half a cosine from 1 down to `final`."""
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, max_steps))))


SCHEDULES: dict[str, Callable[[int, int], float]] = {"constant": constant, "cosine": cosine}


def lr_factor(step: int, *, schedule: str, warmup_steps: int, max_steps: int) -> float:
    """Linear warm-up over `warmup_steps` updates, then the schedule.

    In the published training the first update had a learning rate of 0, and n processes warmed up
    in 1/n of the steps, as accelerate moves a schedule once per process. Here the first update
    counts, and a schedule is a function of the number of updates alone.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return SCHEDULES[schedule](step - warmup_steps, max_steps - warmup_steps)


def check_schedule(name: str) -> None:
    if name not in SCHEDULES:
        raise ConfigError(f"train.lr_scheduler is {name!r}; {nearest(str(name), SCHEDULES)}")


SCALING_RULES: dict[str, Callable[[float], float]] = {"sqrt": math.sqrt, "linear": float}


def scaled_lr(lr: float, total_batch: int, *, rule: str = "sqrt", base_batch: int = 256) -> float:
    """The learning rate for `total_batch` clips per update of one that suits `base_batch`.

    rule: "sqrt" for optimizers that normalise gradients (Krizhevsky, 2014, section 5), "linear"
        for SGD (Goyal et al., 2017).
    """
    if rule not in SCALING_RULES:
        raise ConfigError(f"train.auto_lr.rule is {rule!r}; {nearest(str(rule), SCALING_RULES)}")
    return lr * SCALING_RULES[rule](total_batch / base_batch)
