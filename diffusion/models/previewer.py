"""The previewer: a small convolutional decoder from semantic latents to a quarter-size video."""

from diffusers.configuration_utils import register_to_config
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from diffusion.models.interfaces import PreviewDecoder
from diffusion.utils.frames import map_frames
from diffusion.utils.ranges import Count


class Previewer(PreviewDecoder):
    """Shows what the semantic latents hold without any diffusion, at 1/4 of the video's size.

    Parameter names are those of the published `previewer.safetensors`. Meant to run in eval mode.
    """

    latent_channels, upscaling = 16, 8

    @register_to_config
    def __init__(self, *, frames_per_chunk: Count = 8) -> None:
        """frames_per_chunk: frames per network call; it bounds memory, not the result."""
        super().__init__()
        self.frames_per_chunk = frames_per_chunk
        self.blocks = nn.Sequential(
            *_activated(nn.Conv2d(self.latent_channels, 512, kernel_size=1)),
            *_activated(nn.Conv2d(512, 512, kernel_size=3, padding=1)),
            *_activated(nn.ConvTranspose2d(512, 256, kernel_size=2, stride=2)),
            *_activated(nn.Conv2d(256, 256, kernel_size=3, padding=1)),
            *_activated(nn.ConvTranspose2d(256, 128, kernel_size=2, stride=2)),
            *_activated(nn.Conv2d(128, 128, kernel_size=3, padding=1)),
            *_activated(nn.ConvTranspose2d(128, 128, kernel_size=2, stride=2)),
            *_activated(nn.Conv2d(128, 128, kernel_size=3, padding=1)),
            nn.Conv2d(128, 3, kernel_size=1),
        )

    @apply_forward_hook
    def decode(self, latents: Tensor) -> Tensor:
        """(B, 16, F, h, w) -> (B, 3, F, 8h, 8w) in [-1, 1]."""
        return map_frames(self.forward, latents, self.frames_per_chunk)

    def forward(self, latents: Tensor) -> Tensor:
        """(N, 16, h, w) -> (N, 3, 8h, 8w) in [-1, 1]."""
        # The network's range is [0, 1].
        return (2 * self.blocks(latents) - 1).clamp(-1, 1)


def _activated(conv: nn.Conv2d | nn.ConvTranspose2d) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Activation before normalisation: the order that the published weights were trained with."""
    return conv, nn.GELU(), nn.BatchNorm2d(conv.out_channels)
