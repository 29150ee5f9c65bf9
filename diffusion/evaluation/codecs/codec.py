"""What is measured: a codec makes a video small and restores it."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from diffusion.utils.devices import sent

STORED_BITS = 16  # of a latent value: float16


@dataclass(frozen=True)
class CodecOptions:
    """steps, sampler, seed: of codecs that restore by diffusion; None: each config's own."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    steps: int | None = None
    sampler: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class Encoded:
    """All that a decoder gets.

    data: float16 latents (1, C, f, h, w) on the CPU, or the bytes of a file.
    size: (F, H, W) of the video.
    """

    data: Tensor | bytes
    size: tuple[int, int, int]

    @property
    def bits(self) -> int:
        if isinstance(self.data, bytes):
            return 8 * len(self.data)
        return STORED_BITS * self.data.numel()

    def latents(self, device: torch.device) -> Tensor:
        """(1, C, f, h, w), float32."""
        return sent(self.data, device).float()


class Codec(ABC):
    """name: as it was asked for, and as tables show it."""

    name: str

    @abstractmethod
    def encode(self, video: Tensor) -> Encoded:
        """(1, 3, F, H, W) in [-1, 1], of any size, from any device.

        UserError for a video that cannot be.
        """

    @abstractmethod
    def decode(self, encoded: Encoded) -> Tensor:
        """-> (1, 3, F, H, W) in [-1, 1], of exactly the size that was encoded.

        On the device that the codec computes on, where it is measured.
        """

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """spatial_compression, temporal_compression, channels (None where there are no latents),
        values_per_pixel, bits_per_pixel, parameters.

        Of a video that needs no padding; what a video really took is `Encoded.bits`.
        """

    @abstractmethod
    def made_with(self) -> dict[str, Any]:
        """All that the reconstruction depends on but the video, as JSON values."""


def store(latents: Tensor, video: Tensor) -> Encoded:
    """Latents (1, C, f, h, w) of `video`, as they would be stored."""
    frames, height, width = video.shape[2:]
    return Encoded(latents.to("cpu", torch.float16), (frames, height, width))


def restored(video: Tensor, encoded: Encoded) -> Tensor:
    """(1, 3, F', H', W') as decoded -> (1, 3, F, H, W): without padding, within [-1, 1]."""
    frames, height, width = encoded.size
    return video[:, :, :frames, :height, :width].float().clamp(-1, 1)


def latent_facts(
    spatial: float, temporal: float, channels: int, networks: Sequence[nn.Module] = ()
) -> dict[str, Any]:
    """`Codec.facts` of latents with `channels` values per spatial x spatial x temporal pixels."""
    values = channels / (spatial**2 * temporal)
    return {
        "spatial_compression": spatial,
        "temporal_compression": temporal,
        "channels": channels,
        "values_per_pixel": values,
        "bits_per_pixel": STORED_BITS * values,
        "parameters": sum(p.numel() for network in networks for p in network.parameters()),
    }


def weights_digest(network: nn.Module) -> str:
    """Of all parameters and buffers, wherever they were loaded from."""
    return tensors_digest(network.state_dict())


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = rearrange(tensor.detach().cpu().contiguous(), "... -> (...)")
        digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
