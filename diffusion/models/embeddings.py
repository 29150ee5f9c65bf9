"""Sinusoidal embeddings of the diffusion time and of the position of a token in its clip."""

import math
from typing import NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from diffusion.utils.constants import constant
from diffusion.utils.devices import sent
from diffusion.utils.errors import ConfigError

MAX_PERIOD = 10_000.0


def timestep_frequencies(dim: int, device: torch.device) -> Tensor:
    """(dim / 2,) float32, geometric from 1 down to almost 1 / MAX_PERIOD."""
    index = torch.arange(dim // 2, dtype=torch.float32, device=device)
    return torch.exp(-math.log(MAX_PERIOD) * index / (dim // 2))


def timestep_features(timestep: Tensor, dim: int) -> Tensor:
    """(...) -> (..., dim) float32: cosines first, then sines."""
    angles = timestep.float()[..., None] * timestep_frequencies(dim, timestep.device)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimestepEmbedder(nn.Module):
    """Diffusion time -> vector: sinusoidal features, then a two-layer MLP."""

    def __init__(self, hidden_size: int, num_features: int = 256) -> None:
        super().__init__()
        self.num_features = num_features
        self.mlp = nn.Sequential(
            nn.Linear(num_features, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
        )

    def forward(self, timestep: Tensor) -> Tensor:
        """(...) -> (..., D)."""
        features = timestep_features(timestep, self.num_features)
        return self.mlp(features.to(next(self.mlp.parameters()).dtype))


class PositionDims(NamedTuple):
    """Channels of the positional embedding that encode each axis, in this order."""

    time: int
    column: int
    row: int


def position_dims(hidden_size: int) -> PositionDims:
    """A third for time, rounded down so that all parts are even; half of the rest per space axis.

    1152 -> 384, 384, 384; 320 -> 104, 108, 108.
    """
    if hidden_size % 4 or hidden_size < 12:
        raise ConfigError(
            f"hidden size {hidden_size} cannot hold sine-cosine positions of three axes; "
            "use a multiple of 4 of at least 12"
        )
    time = hidden_size // 12 * 4
    space = (hidden_size - time) // 2
    return PositionDims(time, space, space)


@constant(maxsize=4)  # a table of a long clip is large, and a clip needs one per window or tile
def video_positions(
    size: tuple[int, int, int],
    hidden_size: int,
    *,
    origin: tuple[float, float, float] = (0, 0, 0),
    interpolation: float = 1.0,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Sine-cosine embedding of every token of a clip of size (F, H, W): (F, H, W, D).

    `origin` is the (frame, row, column) of the first token, in tokens; a tile that starts at an odd
    latent has a fraction. `interpolation` divides rows and columns, so that a model meets the range
    of positions it knows on a finer lattice.
    """
    dims = position_dims(hidden_size)
    frames, height, width = size
    time, row, column = (
        sent(_sines_cosines(*axis).to(dtype), device)
        for axis in (
            (frames, origin[0], 1.0, dims.time),
            (height, origin[1], interpolation, dims.row),
            (width, origin[2], interpolation, dims.column),
        )
    )
    return torch.cat(
        [
            repeat(time, "f d -> f h w d", h=height, w=width),
            repeat(column, "w d -> f h w d", f=frames, h=height),
            repeat(row, "h d -> f h w d", f=frames, w=width),
        ],
        dim=-1,
    )


def _sines_cosines(count: int, first: float, scale: float, dim: int) -> Tensor:
    """Positions first, first + 1, ... over scale -> (count, dim): sines first, then cosines."""
    # float64 on the CPU: large positions keep their digits, and some devices have no float64
    positions = (torch.arange(count, dtype=torch.float64) + first) / scale
    frequencies = MAX_PERIOD ** -(torch.arange(dim // 2, dtype=torch.float64) / (dim // 2))
    angles = rearrange(positions, "n -> n 1") * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
