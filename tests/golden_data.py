"""Access to the golden files: inputs and outputs of the published implementation.

Their frames travel flattened, (b*F, C, H, W); `to_video` and `to_frames` convert here, and only here.
"""

import json
from functools import cache
from pathlib import Path

import recipe
import torch
from einops import rearrange
from torch import Tensor

FOLDER = Path(__file__).parent / "golden"
INDEX = json.loads((FOLDER / "index.json").read_text())
TABLES = INDEX["tables"]


def cases(group: str) -> list[str]:
    """Names of the cases of a group whose file is here."""
    return [
        name
        for name, meta in INDEX["cases"].items()
        if meta["group"] == group and (FOLDER / meta["file"]).exists()
    ]


def load(name: str) -> tuple[dict, dict[str, Tensor]]:
    """-> (meta, tensors) of a case."""
    return recipe.load_case(FOLDER, name)


@cache
def weights(keys: str, seed: int, family: str) -> dict[str, Tensor]:
    """The deterministic state dict that an entry of `meta["weights"]` describes."""
    return recipe.make_state(recipe.load_keys(FOLDER, keys), seed, family)


def case_weights(entry: dict) -> dict[str, Tensor]:
    """As `weights`, and checked against the fingerprints of the entry."""
    state = weights(entry["keys"], entry["seed"], entry["family"])
    recipe.check_state(state, entry["fingerprints"])
    return state


def relative_error(got: Tensor, want: Tensor) -> float:
    """Largest error over the root mean square of what was wanted."""
    return recipe.errors(got, want)[1]


def to_video(frames: Tensor, num_frames: int) -> Tensor:
    """(B*F, C, H, W) -> (B, C, F, H, W)."""
    return rearrange(frames, "(b f) c h w -> b c f h w", f=num_frames)


def to_frames(video: Tensor) -> Tensor:
    """(B, C, F, H, W) -> (B*F, C, H, W)."""
    return rearrange(video, "b c f h w -> (b f) c h w")


def split_inputs(frames: Tensor, num_frames: int, latent_channels: int = 4) -> tuple[Tensor, ...]:
    """Model input (B*F, C, H, W) -> noisy latents and condition, (B, C, F, H, W) each."""
    channels = [latent_channels, frames.shape[1] - latent_channels]
    return torch.split(to_video(frames, num_frames), channels, dim=1)
