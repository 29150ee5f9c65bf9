"""Access to the golden files: inputs and outputs of the published implementation.

Their frames travel flattened, (b*F, C, H, W); they are converted here, and only here.
"""

import json
import math
from functools import lru_cache
from pathlib import Path

import recipe
import torch
from einops import rearrange
from torch import Tensor

FOLDER = Path(__file__).parents[1] / "golden"
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


@lru_cache(maxsize=2)  # hundreds of megabytes each
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


def published_frequencies() -> Tensor:
    """(128,): the timestep frequencies in float32 as the machine of the golden files had them.

    exp differs by one unit in the last place between CPUs. Times a timestep of 999 that is 6e-5 of
    a radian, more than the errors which the DiT cases must resolve, so those cases use these.
    """
    _, t = load("timestep_embed")
    times, want = t["t"][:, None], t["freq"]
    index = torch.arange(128, dtype=torch.float32)
    nominal = torch.exp(-math.log(10000) * index / 128)
    # candidates a few units in the last place away: steps in the integer view of a positive float
    steps = torch.arange(-6, 7, dtype=torch.int32)[:, None, None]
    candidates = (nominal.view(torch.int32) + steps).view(torch.float32)  # (13, 1, 128)
    angles = times * candidates
    errors = (torch.cat([angles.cos(), angles.sin()], dim=-1) - want).abs()  # (13, 9, 256)
    worst = rearrange(errors, "u t (two i) -> u i (t two)", two=2).amax(-1)
    best = worst.argmin(0)
    return candidates[best, 0, torch.arange(128)]
