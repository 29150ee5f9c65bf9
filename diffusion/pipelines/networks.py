"""The networks of a cascade, and how a pipeline takes them without changing them."""

from copy import deepcopy
from dataclasses import dataclass
from typing import Literal, TypeVar, overload

import torch
from torch import Tensor, nn

from diffusion.models.autoencoder import Autoencoder
from diffusion.models.dit import VideoDiT
from diffusion.models.interfaces import Compressor, PreviewDecoder
from diffusion.utils.errors import UserError

N = TypeVar("N", bound=nn.Module)


@dataclass(frozen=True)
class Networks:
    """One that is None cannot be used: encoding needs the compressor alone."""

    compressor: Compressor | None = None
    previewer: PreviewDecoder | None = None
    vae: Autoencoder | None = None
    refiner: VideoDiT | None = None

    @overload
    def require(self, name: Literal["compressor"]) -> Compressor: ...
    @overload
    def require(self, name: Literal["previewer"]) -> PreviewDecoder: ...
    @overload
    def require(self, name: Literal["vae"]) -> Autoencoder: ...
    @overload
    def require(self, name: Literal["refiner"]) -> VideoDiT: ...

    def require(self, name: str) -> nn.Module:
        network = getattr(self, name)
        if network is None:
            raise UserError(f"this cascade was built without its {name}, which this needs")
        return network


def for_inference(
    network: N | None, device: torch.device, dtype: torch.dtype | None = None
) -> N | None:
    """The same network in modules of its own, in eval mode: the given one stays as it is.

    Weights that are on `device` and in `dtype` (None: any) are shared, others are converted copies.
    """
    if network is None:
        return None
    own: dict[int, Tensor] = {}
    for tensor in (*network.parameters(), *network.buffers()):
        wanted = dtype if tensor.is_floating_point() else None
        value = tensor.detach().to(device=device, dtype=wanted)
        is_parameter = isinstance(tensor, nn.Parameter)
        own[id(tensor)] = nn.Parameter(value, requires_grad=False) if is_parameter else value
    return deepcopy(network, own).eval()
