"""Optimizers by name."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from came_pytorch import CAME
from torch import nn, optim

from diffusion.registry import Registry, build
from diffusion.training.muon import Muon
from diffusion.utils.errors import ConfigError

OPTIMIZERS = Registry(
    "optimizer",
    [optim.AdamW, optim.Adam, optim.NAdam, optim.RAdam, optim.RMSprop, optim.SGD]
    + [optim.Adafactor, CAME, Muon],
)
DEFAULT_OPTIMIZER = {"type": "AdamW", "weight_decay": 0.01, "betas": (0.9, 0.99)}
NEED_WHOLE_WEIGHTS = ("Adafactor", "CAME", "Muon")  # for means over rows and columns, products


def build_optimizer(
    options: Mapping[str, Any], parameters: Iterable[nn.Parameter], lr: float
) -> optim.Optimizer:
    """The optimizer that `type` names; the published model was trained with CAME's defaults."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return build(OPTIMIZERS, options, "train.optimizer", params=trained, lr=lr)


def check_optimizer(options: Mapping[str, Any]) -> None:
    """Optimizers look at their options when they are built, so one is, for a single weight."""
    try:
        build_optimizer(options, [nn.Parameter(torch.zeros(1))], lr=1e-3)
    except AssertionError as error:  # CAME's, without words
        others = {key: value for key, value in options.items() if key != "type"}
        raise ConfigError(f"train.optimizer: {options['type']} cannot have {others}") from error
