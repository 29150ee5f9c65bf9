"""Structure and texture as VGG-16 sees them: DISTS."""

import importlib.util
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from diffusion.evaluation.metrics.metric import Metric
from diffusion.evaluation.metrics.perceptual import map_pairs
from diffusion.evaluation.metrics.weight_files import BACKBONES, read_features
from diffusion.utils.imagenet import IMAGENET_MEAN, IMAGENET_STD


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
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))

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


DISTS_METRIC = Metric(
    name="dists",
    label="DISTS",
    higher_is_better=False,
    definition="Ding et al. 2020; VGG-16 of torchvision (ImageNet); whole frame, not resized",
    compute=dists,
    why_missing=dists_missing,
    files=dists_files,
    least_side=32,
)
