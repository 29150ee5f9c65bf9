"""How the refiner is told what to restore: used alike by training and by sampling."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.utils.constants import constant
from diffusion.utils.devices import sent
from diffusion.utils.errors import ConfigError
from diffusion.utils.ranges import Count, Positive
from diffusion.utils.resize import resize_bilinear


@dataclass(frozen=True)
class Conditioning:
    """Joins the refiner's condition, and says what its x0 is.

    Shapes: semantic latents (B, C, F, h, w); VAE latents, x0 and base (B, 4, F, up*h, up*w).

    scale: factor on the upsampled latents (the published model has the VAE's 0.13025).
    residual_std: per VAE channel. When given, the refiner also sees `base`, the VAE latents of the
        preview, and restores what base lacks, in units of these standard deviations: predict and
        refine (Whang et al. 2022, arXiv:2112.02475). None: x0 are the VAE latents themselves.
    """

    upsampling: Count
    scale: Positive = 1.0
    residual_std: Sequence[Positive] | None = None

    @property
    def uses_base(self) -> bool:
        return self.residual_std is not None

    def join(self, semantic: Tensor, base: Tensor | None) -> Tensor:
        """-> (B, C or C + 4, F, up*h, up*w), what stands beside the noise."""
        height, width = (self.upsampling * side for side in semantic.shape[-2:])
        upsampled = resize_bilinear(semantic, (height, width)) * self.scale
        return torch.cat([upsampled, there(base)], dim=1) if self.uses_base else upsampled

    def base_of(self, joined: Tensor) -> Tensor | None:
        """The base that `join` was given."""
        return None if self.residual_std is None else joined[:, -len(self.residual_std) :]

    def to_x0(self, vae_latents: Tensor, base: Tensor | None) -> Tensor:
        if self.residual_std is None:
            return vae_latents
        return (vae_latents - there(base)) / std_like(there(base), self.residual_std)

    def from_x0(self, x0: Tensor, base: Tensor | None) -> Tensor:
        """The inverse of `to_x0`: -> VAE latents."""
        if self.residual_std is None:
            return x0
        return x0 * std_like(there(base), self.residual_std) + there(base)


def there(base: Tensor | None) -> Tensor:
    if base is None:
        raise ConfigError(
            "conditioning.residual_std makes the refiner build on the latents of previews, which "
            "these latents came without; encode the videos again"
        )
    return base


def std_like(latents: Tensor, residual_std: Sequence[float]) -> Tensor:
    """(1, C, 1, 1, 1) on the latents' device, in their precision."""
    return per_channel(tuple(residual_std), latents.device, latents.dtype)


@constant(maxsize=8)  # one copy to a device, not one in every step
def per_channel(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """-> (1, C, 1, 1, 1)."""
    return sent(torch.tensor(values), device).to(dtype).view(1, -1, 1, 1, 1)
