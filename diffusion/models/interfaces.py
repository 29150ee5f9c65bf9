"""What those who use compressors and previewers may ask of them."""

from torch import Tensor

from diffusion.models.network import Network


class Compressor(Network):
    """Video -> semantic latents, every frame by itself.

    spatial_compression, temporal_compression: the latents are smaller by these factors per axis.
    """

    latent_channels: int
    spatial_compression: int
    temporal_compression: int
    frames_per_chunk: int

    def encode(self, video: Tensor) -> Tensor:
        """(B, 3, F, H, W) in [-1, 1] -> (B, latent_channels, F, H/s, W/s)."""
        raise NotImplementedError


class PreviewDecoder(Network):
    """Semantic latents -> video, without diffusion.

    upscaling: factor from the latents' sides to the video's.
    """

    latent_channels: int
    upscaling: int
    frames_per_chunk: int

    def decode(self, latents: Tensor) -> Tensor:
        """(B, latent_channels, F, h, w) -> (B, 3, F, h*u, w*u) in [-1, 1]."""
        raise NotImplementedError
