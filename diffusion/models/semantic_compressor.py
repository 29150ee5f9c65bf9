"""The semantic compressor: every frame becomes a very small latent, 32x in height and width."""

from diffusers.configuration_utils import register_to_config
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn
from torchvision.models import efficientnet_v2_s

from diffusion.models.interfaces import Compressor
from diffusion.utils.errors import UserError
from diffusion.utils.frames import map_frames
from diffusion.utils.imagenet import imagenet_statistics
from diffusion.utils.ranges import Count


class SemanticCompressor(Compressor):
    """EfficientNetV2-S features and a 1x1 mapper to 16 channels, normalised per channel.

    Frames are independent and the encoding is deterministic. Parameter names are those of the
    published `effnet_encoder.safetensors`. Meant to run in eval mode: its batch norms and the
    backbone's stochastic depth make train mode another function.
    """

    latent_channels, spatial_compression, temporal_compression = 16, 32, 1
    mean: Tensor
    std: Tensor

    @register_to_config
    def __init__(self, *, frames_per_chunk: Count = 8) -> None:
        """frames_per_chunk: frames per backbone call; it bounds memory, not the result."""
        super().__init__()
        self.frames_per_chunk = frames_per_chunk
        self.backbone = efficientnet_v2_s(weights=None).features
        self.mapper = nn.Sequential(
            nn.Conv2d(1280, self.latent_channels, kernel_size=1, bias=False),
            nn.BatchNorm2d(self.latent_channels, affine=False),
        )
        mean, std = imagenet_statistics()
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    @apply_forward_hook
    def encode(self, video: Tensor) -> Tensor:
        """(B, 3, F, H, W) in [-1, 1] -> (B, 16, F, H/32, W/32)."""
        height, width = video.shape[-2:]
        if height % self.spatial_compression or width % self.spatial_compression:
            raise UserError(
                f"the semantic compressor cannot encode {height}x{width} pixels (height x width): "
                f"crop or pad both to multiples of {self.spatial_compression}"
            )
        return map_frames(self.forward, video, self.frames_per_chunk)

    def forward(self, frames: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> (N, 16, H/32, W/32)."""
        normalised = (0.5 * (frames + 1) - self.mean) / self.std
        return self.mapper(self.backbone(normalised))
