"""Realism of motion as I3D sees it: the Frechet distance of reconstructed videos."""

import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as nnf
from einops import rearrange
from torch import Tensor, nn

from diffusion.evaluation.metrics.metric import Metric
from diffusion.evaluation.metrics.weight_files import Weights, package_missing

SIDE = 224  # pixels
LEAST_FRAMES = 9  # fewer vanish in its pooling


def i3d_weights() -> Weights:
    """Trained on Kinetics-400, where the package cd-fvd keeps them."""
    package = importlib.util.find_spec("cdfvd")
    folder = Path(package.origin).parent if package else Path()
    fetch = "from cdfvd.third_party.i3d.utils import load_i3d_model as f; f('cpu')"
    return Weights(folder / "third_party/i3d/i3d_pretrained_400.pt", fetch)


def i3d_missing() -> str | None:
    return package_missing("cdfvd", "cd-fvd") or i3d_weights().missing()


def i3d_logits(video: Tensor, reference: Tensor) -> Tensor:
    """Two (3, F, H, W) in [-1, 1] -> (2, 400): I3D's logits of the two, resized to 224 x 224."""
    network = i3d_network(i3d_weights().path, video.device)
    clips = torch.stack([video.float(), reference.float()]).clamp(-1, 1)
    frames = rearrange(clips, "b c f h w -> (b f) c h w")
    frames = nnf.interpolate(frames, (SIDE, SIDE), mode="bilinear", align_corners=False)
    with torch.no_grad():
        return network(rearrange(frames, "(b f) c h w -> b c f h w", b=2))


@cache
def i3d_network(weights: Path, device: torch.device) -> nn.Module:
    from cdfvd.third_party.i3d.pytorch_i3d import InceptionI3d

    network = InceptionI3d(400, in_channels=3)
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return network.requires_grad_(False).eval().to(device)


def frechet_distance(pairs: Sequence[Tensor]) -> float:
    """(2, D) of every video -> Frechet distance of the two Gaussians (Unterthiner et al. 2018).

    |mean - mean'|^2 + tr(S + S' - 2 (S S')^(1/2)), where the last trace is the sum of the singular
    values of A A'^T for S = A^T A: exact, however few videos there are. One has no spread, so that
    the distance is that of the means.
    """
    a, b = torch.stack(list(pairs)).double().unbind(1)
    roots = [(x - x.mean(0)) / max(1, len(x) - 1) ** 0.5 for x in (a, b)]
    spread = sum(root.square().sum() for root in roots)
    common = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    return ((a.mean(0) - b.mean(0)).square().sum() + spread - 2 * common).item()


RFVD = Metric(
    name="rfvd",
    label="rFVD",
    higher_is_better=False,
    definition="Frechet distance of I3D logits (Kinetics-400, package cd-fvd), all originals "
    "against all reconstructions, one clip a video at 224x224; of few videos it says little",
    compute=i3d_logits,
    why_missing=i3d_missing,
    files=lambda: [i3d_weights().path],
    least_frames=LEAST_FRAMES,
    summarize=frechet_distance,
    per_frame=False,
    optional=True,
)
