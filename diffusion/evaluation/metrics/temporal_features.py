"""Consistency and realism of motion, as networks see them: DINO, CLIP and I3D.

The first two are any folder that transformers can load; I3D is the package cd-fvd's.
"""

import importlib.util
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as nnf
from einops import rearrange
from torch import Tensor, nn

from diffusion.evaluation.metrics.perceptual import Weights, package_missing
from diffusion.utils.errors import WeightsError
from diffusion.utils.imagenet import IMAGENET_MEAN, IMAGENET_STD

CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
CHUNK = 16  # frames at once
I3D_SIZE = 224
I3D_LEAST_FRAMES = 9  # fewer vanish in its pooling


def consistency(features: Tensor) -> Tensor:
    """(F, D) of a video's frames -> (F-1,): VBench's consistency of every frame but the first.

    The mean cosine to the first frame and to the one before, neither below 0 (Huang et al. 2024,
    arXiv:2311.17982, appendix A).
    """
    features = nnf.normalize(features.float(), dim=-1)
    before = (features[1:] * features[:-1]).sum(-1).clamp_min(0)
    first = (features[1:] * features[0]).sum(-1).clamp_min(0)
    return (before + first) / 2


def subject_consistency(folder: Path, video: Tensor, reference: Tensor) -> Tensor:
    """(3, F, H, W) in [-1, 1] -> (F-1,), of DINO's class tokens. The original plays no part.

    The whole frame, short edge as the network was trained, bilinear without antialiasing.
    """
    network = load_network(folder, "dino", video.device)
    size = network.config.image_size
    positions = "interpolate_pos_encoding" in inspect.signature(network.forward).parameters
    options = {"interpolate_pos_encoding": True} if positions else {}

    def tokens(frames: Tensor) -> Tensor:
        frames = normalized(short_edge_to(frames, size, "bilinear"), IMAGENET_MEAN, IMAGENET_STD)
        return network(pixel_values=frames, **options).last_hidden_state[:, 0]

    return consistency(map_chunks(tokens, video))


def background_consistency(folder: Path, video: Tensor, reference: Tensor) -> Tensor:
    """(3, F, H, W) in [-1, 1] -> (F-1,), of CLIP's embeddings. The original plays no part.

    Short edge as the network was trained, bicubic without antialiasing, and the central square.
    """
    network = load_network(folder, "clip", video.device)
    size = network.config.vision_config.image_size

    def embeddings(frames: Tensor) -> Tensor:
        frames = short_edge_to(frames, size, "bicubic").clamp(0, 1)
        top, left = ((side - size) // 2 for side in frames.shape[-2:])
        square = frames[..., top : top + size, left : left + size]
        pooled = network.vision_model(pixel_values=normalized(square, *CLIP)).pooler_output
        return network.visual_projection(pooled)

    return consistency(map_chunks(embeddings, video))


def map_chunks(net: Callable[[Tensor], Tensor], video: Tensor) -> Tensor:
    """(3, F, H, W) in [-1, 1] -> (F, D), where net takes (N, 3, H, W) in [0, 1]."""
    frames = rearrange((video.float() + 1) / 2, "c f h w -> f c h w").clamp(0, 1)
    with torch.no_grad():
        return torch.cat([net(part) for part in frames.split(CHUNK)])


def short_edge_to(frames: Tensor, size: int, mode: str) -> Tensor:
    """(N, C, H, W) -> short edge `size`, the other in proportion, rounded down."""
    height, width = frames.shape[-2:]
    short = min(height, width)
    target = (size * height // short, size * width // short)
    return nnf.interpolate(frames, target, mode=mode, align_corners=False)


def normalized(frames: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(N, 3, H, W) in [0, 1] -> of zero mean and unit variance over natural pictures."""
    mean, std = (frames.new_tensor(x).view(3, 1, 1) for x in (mean, std))
    return (frames - mean) / std


def folder_missing(folder: Path | None, kind: str) -> str | None:
    """kind: "dino" or "clip"."""
    example = {"dino": "facebook/dino-vitb16", "clip": "openai/clip-vit-base-patch32"}[kind]
    fetch = f"hf download {example} --local-dir pretrained/{kind}"
    if folder is None:
        return f"no {kind.upper()} folder was given; pass one with --{kind} (to fetch it: {fetch})"
    if not (folder / "config.json").is_file():
        return f"{folder} is not a folder of transformers (no config.json); fetch one: {fetch}"
    return package_missing("transformers", "transformers")


def folder_files(folder: Path) -> list[Path]:
    return [folder / "config.json", *sorted(folder.glob("*.safetensors"))]


@cache
def load_network(folder: Path, kind: str, device: torch.device) -> nn.Module:
    """A DINO encoder or a CLIP; every weight that counts is the folder's."""
    from transformers import AutoModel, CLIPModel

    loader = AutoModel if kind == "dino" else CLIPModel
    try:
        with quiet_transformers():
            network, found = loader.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise not_a(kind, folder, str(error).splitlines()[0]) from error
    # DINO's published files have no pooler, and its output is not used.
    missing = [key for key in found["missing_keys"] if not key.startswith("pooler.")]
    if missing:
        raise not_a(kind, folder, f"it has no {missing[0]}")
    if kind == "dino" and not hasattr(network.config, "image_size"):
        raise not_a(kind, folder, f"a {type(network).__name__} sees no pictures")
    return network.requires_grad_(False).eval().to(device)


def not_a(kind: str, folder: Path, reason: str) -> WeightsError:
    return WeightsError(f"{folder}: not a {kind.upper()} of transformers ({reason}); pass another")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without its bars and its report of weights: what matters of that is checked."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


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
    frames = nnf.interpolate(frames, (I3D_SIZE, I3D_SIZE), mode="bilinear", align_corners=False)
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
