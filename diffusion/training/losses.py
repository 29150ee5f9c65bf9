"""Pixel and adversarial losses of the autoencoder stages."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from diffusion.models.feature_distance import PerceptualDistance, feature_distance
from diffusion.training.draws import Draws
from diffusion.utils.errors import ConfigError
from diffusion.utils.ranges import Weight

View = Callable[[Tensor], Tensor]
"""(N, 3, H, W) -> (N, 3, h, w): a piece of all frames, resized."""


def charbonnier(difference: Tensor, epsilon: float = 1e-2) -> Tensor:
    """Smooth L1: sqrt(d^2 + eps^2), averaged (Charbonnier et al., 1994)."""
    return (difference.square() + epsilon**2).sqrt().mean()


def log_rmse(reconstruction: Tensor, original: Tensor) -> Tensor:
    """(N, C, H, W) each -> mean over frames of ln RMSE: their mean PSNR, but for sign and unit.

    As a loss (Chen et al. 2022, arXiv:2204.04676, use it for restoration) it counts the relative
    gain of every frame alike, where a mean of errors is about the most detailed frames.
    """
    return 0.5 * (reconstruction - original).square().mean((1, 2, 3)).clamp_min(1e-8).log().mean()


PixelLoss = Literal["charbonnier", "log_rmse"]
# (N, C, H, W), the original -> what a reconstruction is off by.
PIXEL_LOSSES: dict[PixelLoss, Callable[[Tensor, Tensor], Tensor]] = {
    "charbonnier": lambda reconstruction, original: charbonnier(reconstruction - original),
    "log_rmse": log_rmse,
}


class FeatureDiscriminator(nn.Module):
    """Tells features of real frames from those of reconstructions, patch by patch.

    A small convolutional head on each of the finest layers of a fixed ImageNet network: Projected
    GAN (Sauer et al. 2021, arXiv:2111.01007) without its random mixing. It learns in few steps,
    because the features are good already, and costs little beside the perceptual loss that
    computes them anyway.
    """

    def __init__(self, channels: Sequence[int] = (16, 24, 40), width: int = 64):
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(
                spectral_norm(nn.Conv2d(layer, width, 3, padding=1)),
                nn.LeakyReLU(0.2),
                spectral_norm(nn.Conv2d(width, width, 3, padding=1, stride=2)),
                nn.LeakyReLU(0.2),
                spectral_norm(nn.Conv2d(width, 1, 3, padding=1)),
            )
            for layer in channels
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Fine to coarse (N, C, h, w), as many as heads or more -> logits (N, 1, h/2, w/2)."""
        return [head(layer) for head, layer in zip(self.heads, features, strict=False)]


def hinge_losses(
    discriminator: FeatureDiscriminator, real: Sequence[Tensor], fake: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Features of real and reconstructed frames -> losses of the discriminator and the decoder.

    The hinge loss of Lim & Ye 2017 (arXiv:1705.02894, eq. 5). Gradients of the first reach the
    discriminator alone, those of the second the decoder alone, so that one backward pass of their
    sum trains both.
    """
    on_real = discriminator([layer.detach() for layer in real])
    on_fake = discriminator([layer.detach() for layer in fake])
    loss = _mean(F.relu(1 - x).mean() for x in on_real) + _mean(
        F.relu(1 + x).mean() for x in on_fake
    )
    fixed = {name: p.detach() for name, p in discriminator.named_parameters()}
    judged = torch.func.functional_call(discriminator, fixed, (fake,))
    return loss, -_mean(x.mean() for x in judged)


def random_view(draws: Draws, height: int, width: int) -> View:
    """A piece of 3/4 to all of the height and width, made 0.8 to 1.3 times as large.

    A network's features see a fixed grid at a fixed scale, and a decoder learns to please them
    there. Seen through random views (E-LPIPS, Kettunen et al. 2019, arXiv:1906.03973), a distance
    is small for frames that are near also to other networks.
    """
    share, scale = 0.75 + 0.25 * draws.shared_uniform(), 0.8 + 0.5 * draws.shared_uniform()
    piece = [round(share * length) for length in (height, width)]
    top, left = draws.shared_integers([height - piece[0], width - piece[1]])
    size = [max(1, round(scale * length / 8)) * 8 for length in piece]

    def view(frames: Tensor) -> Tensor:
        """(N, 3, height, width) -> (N, 3, *size)."""
        frames = frames[..., top : top + piece[0], left : left + piece[1]].float()
        return F.interpolate(frames, size, mode="bilinear", antialias=True)

    return view


class PictureLoss(nn.Module):
    """How far decoded frames are from the original: in pixels, in features, to a judge.

    perceptual_weight: of the distance of features. adversarial_weight: of what a discriminator of
    these features holds against the frames. Features are computed once for both.
    pixel_loss: a name of PIXEL_LOSSES.
    """

    def __init__(
        self,
        perceptual_weight: Weight,
        adversarial_weight: Weight,
        pixel_loss: PixelLoss = "charbonnier",
    ):
        super().__init__()
        if pixel_loss not in PIXEL_LOSSES:
            raise ConfigError(f"pixel_loss {pixel_loss!r} is not one of {', '.join(PIXEL_LOSSES)}")
        self.pixel_loss = PIXEL_LOSSES[pixel_loss]
        self.perceptual_weight, self.adversarial_weight = perceptual_weight, adversarial_weight
        self.features = PerceptualDistance() if perceptual_weight or adversarial_weight else None

    def trained(self) -> dict[str, nn.Module]:
        """What a stage has to train among its parts for this loss: the discriminator, if any."""
        return {"discriminator": FeatureDiscriminator()} if self.adversarial_weight else {}

    def forward(
        self,
        decoded: Tensor,
        frames: Tensor,
        parts: Mapping[str, nn.Module] | nn.ModuleDict,
        view: View | None = None,
    ) -> dict[str, Tensor]:
        """Two (N, 3, H, W), about [-1, 1] -> weighted terms. Channels last is faster.

        parts: of the stage, with what `trained` has made; the same terms train it.
        view: of both, whose features are compared; the frames as they are if None.
        """
        terms = {"pixels": self.pixel_loss(decoded.float(), frames)}
        if self.features is None:
            return terms
        if view is not None:
            decoded, frames = view(decoded), view(frames)
        with torch.no_grad():
            real = self.features.features(frames)
        fake = self.features.features(decoded)
        terms["perceptual"] = self.perceptual_weight * feature_distance(fake, real).mean()
        if self.adversarial_weight:
            judge, judged = hinge_losses(parts["discriminator"], real, fake)
            terms["discriminator"] = judge
            terms["adversarial"] = self.adversarial_weight * judged
        return terms


def _mean(values: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean()
