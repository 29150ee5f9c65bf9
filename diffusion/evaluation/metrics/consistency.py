"""VBench's consistencies of a video's frames, as DINO and CLIP see them.

Both are any folder that transformers can load.
"""

import inspect
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import torch
import torch.nn.functional as nnf
from einops import rearrange
from torch import Tensor, nn

from diffusion.evaluation.metrics.metric import Metric
from diffusion.evaluation.metrics.weight_files import package_missing
from diffusion.evaluation.quiet_libraries import quiet_transformers
from diffusion.utils.errors import WeightsError
from diffusion.utils.imagenet import IMAGENET_MEAN, IMAGENET_STD

CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
CHUNK = 16  # frames at once


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


def subject_metric(folder: Path | None) -> Metric:
    return Metric(
        name="subject_consistency",
        label="Subject consistency",
        higher_is_better=True,
        definition="VBench's, class tokens of --dino through transformers",
        compute=partial(subject_consistency, folder),
        why_missing=partial(folder_missing, folder, "dino"),
        files=partial(folder_files, folder),
        least_frames=2,
        least_side=16,
        optional=True,
    )


def background_metric(folder: Path | None) -> Metric:
    return Metric(
        name="background_consistency",
        label="Background consistency",
        higher_is_better=True,
        definition="VBench's, embeddings of --clip through transformers",
        compute=partial(background_consistency, folder),
        why_missing=partial(folder_missing, folder, "clip"),
        files=partial(folder_files, folder),
        least_frames=2,
        least_side=16,
        optional=True,
    )
