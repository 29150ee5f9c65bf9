"""A second behaviour of a network in a small file: low-rank changes of its linear layers."""

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from diffusion.models.weights import check_fits, read_state_dict


class LowRank(nn.Module):
    """W + up @ down for every linear layer (LoRA, Hu et al. 2021, arXiv:2106.09685, eq. 3).

    Its parameters are `<layer>.down` (rank, in) and `<layer>.up` (out, rank), with "/" for the dots
    in a layer's name. `up` starts at zero: no change.
    """

    def __init__(self, network: nn.Module, rank: int):
        super().__init__()
        for name, layer in network.named_modules():
            if isinstance(layer, nn.Linear):
                self.add_module(name.replace(".", "/"), LayerChange(layer, rank))

    def changed(self, network: nn.Module) -> dict[str, Tensor]:
        """The weights of these layers with their changes, by the names of the state dict."""
        layers = {name: name.replace("/", ".") for name, _ in self.named_children()}
        return {
            f"{layer}.weight": network.get_submodule(layer).weight + self.get_submodule(name)()
            for name, layer in layers.items()
        }


class LayerChange(nn.Module):
    """up @ down, (out, in)."""

    def __init__(self, layer: nn.Linear, rank: int):
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, layer.in_features))
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self) -> Tensor:
        return self.up @ self.down


def apply_low_rank(network: nn.Module, path: str | Path) -> None:
    """Change `network` for good, by a file of a LowRank's weights, of whatever rank."""
    state = read_state_dict(path)
    rank = min((len(value) for key, value in state.items() if key.endswith(".down")), default=1)
    low_rank = LowRank(network, rank)
    check_fits(low_rank, state, path)
    low_rank.load_state_dict(state)
    change(network, low_rank)


@torch.no_grad()
def change(network: nn.Module, low_rank: LowRank) -> None:
    """Put the changed weights in the place of the network's own."""
    network.load_state_dict(low_rank.changed(network), strict=False)
