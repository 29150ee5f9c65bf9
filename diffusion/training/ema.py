"""Exponential moving average of weights."""

import copy

import torch
from torch import nn


def ema_copy(module: nn.Module) -> nn.Module:
    """A frozen copy that `update_ema` moves."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def update_ema(ema: nn.Module, module: nn.Module, decay: float, step: int) -> None:
    """mean <- decay * mean + (1 - decay) * weight, in place.

    The decay is ramped, min(decay, (1 + step) / (10 + step)), so that the start is forgotten.
    """
    decay = min(decay, (1 + step) / (10 + step))
    for (name, mean), (other, param) in zip(
        ema.named_parameters(), module.named_parameters(), strict=True
    ):
        assert name == other
        mean.lerp_(param, 1 - decay)
    for mean, buffer in zip(ema.buffers(), module.buffers(), strict=True):
        mean.copy_(buffer)
