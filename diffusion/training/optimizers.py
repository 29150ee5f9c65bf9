"""Optimizers by name."""

from collections.abc import Iterable, Mapping
from typing import Any

from came_pytorch import CAME
from torch import nn, optim

from diffusion.registry import Registry, build, check_options, split_type
from diffusion.training.muon import Muon

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
