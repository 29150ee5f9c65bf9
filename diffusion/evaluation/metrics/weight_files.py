"""Files of weights that metrics need, where the libraries that download them keep them.

Nothing is downloaded here: a metric without its weights is missing, and says how to fetch them.
"""

import hashlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from diffusion.utils.errors import UserError


@dataclass(frozen=True)
class Weights:
    """A file of weights.

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


def read_features(backbone: Path) -> dict[str, Tensor]:
    """The convolutions of a torchvision classifier, "0.weight" and so on."""
    try:
        state = torch.load(backbone, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{backbone}: cannot be read ({error.strerror}); fetch it again") from error
    prefix = "features."
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
