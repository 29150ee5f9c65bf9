"""Exponential moving average of weights."""

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from diffusion.training.processes import sharded_like, whole


def ema_copy(module: nn.Module) -> nn.Module:
    """A frozen copy, from which an average starts."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def update_ema(
    ema: Mapping[str, Tensor], weights: Mapping[str, Tensor], decay: float, step: int
) -> None:
    """mean <- decay * mean + (1 - decay) * weight, in place.

    The decay is ramped, min(decay, (1 + step) / (10 + step)), so that the start is forgotten.
    """
    decay = min(decay, (1 + step) / (10 + step))
    assert list(ema) == list(weights)
    means, now = map(local_parts, (ema.values(), weights.values()))
    torch._foreach_lerp_(means, now, 1 - decay)


def local_parts(tensors: Iterable[Tensor]) -> list[Tensor]:
    """What this process holds of tensors that may be sharded: one kernel takes them all."""
    return [t.to_local() if isinstance(t, DTensor) else t for t in tensors]


class Average:
    """The moving average of `module`, and a network of its own that has these weights.

    Under FSDP the average is sharded as the weights are, and `network` has it whole only after
    `gather`; else they are one and the same.
    """

    def __init__(self, network: nn.Module, module: nn.Module, decay: float):
        self.network, self.module, self.decay = network, module, decay
        weights = dict(module.named_parameters())
        self.weights = {
            name: sharded_like(mean.detach(), weights[name])
            for name, mean in network.named_parameters()
        }

    @property
    def is_sharded(self) -> bool:
        return any(isinstance(mean, DTensor) for mean in self.weights.values())

    def update(self, step: int) -> None:
        update_ema(self.weights, dict(self.module.named_parameters()), self.decay, step)
        means, buffers = (list(m.buffers()) for m in (self.network, self.module))
        if buffers:
            torch._foreach_copy_(means, buffers)

    @torch.no_grad()
    def gather(self) -> nn.Module:
        """The network with the average; all processes must call this."""
        for name, parameter in self.network.named_parameters():
            if isinstance(self.weights[name], DTensor):
                parameter.copy_(whole(self.weights[name]))
        return self.network
