"""A second behaviour of a network in a small file: low-rank changes of its layers."""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from diffusion.models.network import Network
from diffusion.models.weights import check_fits, load_as_stored, read_state_dict, widened

log = logging.getLogger(__name__)


class LowRank(Network):
    """W + up @ down for some layers of a network (LoRA, Hu et al. 2021, arXiv:2106.09685, eq. 3).

    Its parameters are `<layer>.down` (rank, in) and `<layer>.up` (out, rank), with "/" for the dots
    in a layer's name; of a convolution, "in" counts the values under its kernel. `up` starts at
    zero: no change.
    """

    @register_to_config
    def __init__(self, *, rank: int, layers: Mapping[str, Sequence[int]]):
        """layers: name of each -> (in, out)."""
        super().__init__()
        for name, (values_in, values_out) in layers.items():
            self.add_module(name.replace(".", "/"), LayerChange(values_in, values_out, rank))

    @classmethod
    def beside(cls, network: nn.Module, rank: int, layers: Iterable[str]) -> "LowRank":
        """Of these layers of a network, which stays as it is (see `layers_of` for the names)."""
        weights = {name: network.get_parameter(f"{name}.weight") for name in layers}
        sizes = {name: [w[0].numel(), len(w)] for name, w in weights.items()}
        return cls(rank=rank, layers=sizes)

    def start_from(self, path: str | Path) -> None:
        """Make the change that a file makes, which may be of a lower rank than this one.

        Directions that the file does not have stay as they were drawn, and change nothing yet.
        """
        state = read_state_dict(path)
        for key, own in self.state_dict().items():
            axis = 0 if key.endswith(".down") else 1  # of the rank
            if key in state:
                state[key] = widened(state[key], own, axis)
        check_fits(self, state, path)
        self.load_state_dict(state)
        log.info("starting from %s", path)

    def changed(self, network: nn.Module) -> dict[str, Tensor]:
        """The weights of these layers with their changes, by the names of the state dict."""
        changed = {}
        for layer, change in self.named_children():
            name = f"{layer.replace('/', '.')}.weight"
            weight = network.get_parameter(name)
            changed[name] = weight + change().view_as(weight)
        return changed


def read_low_rank(path: str | Path) -> LowRank:
    """A file of a LowRank's weights, of whatever rank and layers, without its network."""
    state = read_state_dict(path)
    downs = {key[: -len(".down")]: value for key, value in state.items() if key.endswith(".down")}
    ups = {name: state.get(f"{name}.up", down) for name, down in downs.items()}
    layers = {
        name.replace("/", "."): [down.shape[-1], len(ups[name])] for name, down in downs.items()
    }
    low_rank = LowRank(rank=min(map(len, downs.values()), default=1), layers=layers)
    load_as_stored(low_rank, state, path)
    return low_rank


class LayerChange(nn.Module):
    """up @ down, (out, in)."""

    def __init__(self, values_in: int, values_out: int, rank: int):
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, values_in))
        self.up = nn.Parameter(torch.zeros(values_out, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self) -> Tensor:
        return self.up @ self.down


def layers_of(network: nn.Module, *kinds: type[nn.Module]) -> list[str]:
    """The names of a network's layers of some kinds."""
    return [name for name, layer in network.named_modules() if isinstance(layer, kinds)]


def apply_low_rank(network: nn.Module, path: str | Path) -> None:
    """Change `network` for good, by a file of a LowRank's weights, of whatever rank and layers."""
    state = read_state_dict(path)
    rank = min((len(value) for key, value in state.items() if key.endswith(".down")), default=1)
    named = {key.rpartition(".")[0].replace("/", ".") for key in state}
    layers = [name for name in layers_of(network, nn.Linear, nn.Conv2d) if name in named]
    low_rank = LowRank.beside(network, rank, layers)
    check_fits(low_rank, state, path)
    low_rank.load_state_dict(state)
    change(network, low_rank)


@torch.no_grad()
def change(network: nn.Module, low_rank: LowRank) -> None:
    """Put the changed weights in the place of the network's own."""
    network.load_state_dict(low_rank.changed(network), strict=False)
