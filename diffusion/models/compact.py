"""The networks of the embedded model: frame-wise autoencoders with a linear shortcut.

Encoder and decoder are a fixed linear map of square pixel blocks (their principal components) plus
a convolutional network that learns what the linear map misses, as in the residual autoencoding of
DC-AE (Chen et al., 2025, arXiv:2410.10733, section 3.1) with PCA instead of channel averaging. An
untrained network is therefore the PCA codec itself. The first layer is a pixel-unshuffle: no
convolution runs at full resolution, which is what makes small autoencoders slow on a CPU.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from diffusers.utils.accelerate_utils import apply_forward_hook
from einops import rearrange
from torch import Tensor, nn

from diffusion.models.autoencoder import Autoencoder
from diffusion.models.initialisation import start_at_zero
from diffusion.models.interfaces import Compressor, PreviewDecoder
from diffusion.utils.errors import ConfigError
from diffusion.utils.frames import map_frames
from diffusion.utils.ranges import Count, Natural, Weight


class ConvBlock(nn.Module):
    """Residual pair of 3x3 convolutions: fast arithmetic, for stages with large maps."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        start_at_zero(self.conv2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        return x + self.conv2(F.silu(self.conv1(x)))


class WideBlock(nn.Module):
    """Depthwise 7x7 and pointwise MLP (ConvNeXt, arXiv:2201.03545): wide view, few parameters."""

    def __init__(self, channels: int, expansion: int = 4):
        super().__init__()
        self.spatial = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.expand = nn.Conv2d(channels, expansion * channels, 1)
        self.reduce = nn.Conv2d(expansion * channels, channels, 1)
        start_at_zero(self.reduce)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        return x + self.reduce(F.gelu(self.expand(self.spatial(x)), approximate="tanh"))


BlockName = Literal["conv", "wide"]
BLOCKS: dict[BlockName, type[ConvBlock] | type[WideBlock]] = {"conv": ConvBlock, "wide": WideBlock}


def stage(channels: int, depth: int, block: BlockName) -> nn.Sequential:
    return nn.Sequential(*[BLOCKS[block](channels) for _ in range(depth)])


class LinearBlocks(nn.Module):
    """Fixed linear code of `block` x `block` pixels: whitened principal components.

    The buffers are `mean` (3*b*b), `basis` (components, 3*b*b) with orthonormal rows, and `std`
    (components) of the projections, so that the code has unit variance on the fitted data. It
    carries most of the picture, so it is computed in float32 also under autocast.
    """

    mean: Tensor
    basis: Tensor
    std: Tensor

    def __init__(self, block: int, components: int):
        super().__init__()
        values = 3 * block * block
        if components > values:
            raise ConfigError(
                f"latent_channels={components} must be at most {values}, the values of a block of "
                f"{block}x{block} pixels"
            )
        self.block = block
        self.register_buffer("mean", torch.zeros(values))
        self.register_buffer("basis", torch.eye(values)[:components].clone())
        self.register_buffer("std", torch.ones(components))

    @torch.no_grad()
    def fit(self, batches: Sequence[Tensor]) -> None:
        """batches: (N, 3, H, W) in [-1, 1] each, H and W multiples of `block`."""
        blocks = [F.pixel_unshuffle(frames, self.block) for frames in batches]
        rows = torch.cat([rearrange(b, "n c h w -> (n h w) c") for b in blocks]).double()
        self.mean.copy_(rows.mean(0))
        variance, vectors = torch.linalg.eigh(torch.cov(rows.T))  # ascending
        components = len(self.std)
        self.basis.copy_(vectors.flip(1)[:, :components].T)
        self.std.copy_(variance.flip(0)[:components].clamp_min(1e-12).sqrt())

    def encode(self, frames: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, components, H/b, W/b)."""
        with torch.autocast(frames.device.type, enabled=False):
            weight = self.basis.float() / self.std.float()[:, None]
            bias = -(weight @ self.mean.float())
            rows = F.pixel_unshuffle(frames.float(), self.block)
            return F.conv2d(rows, weight[..., None, None], bias)

    def decode(self, code: Tensor) -> Tensor:
        """(N, components, h, w) -> (N, 3, h*b, w*b)."""
        with torch.autocast(code.device.type, enabled=False):
            weight = (self.basis.float() * self.std.float()[:, None]).T
            rows = F.conv2d(code.float(), weight[..., None, None], self.mean.float())
            return F.pixel_shuffle(rows, self.block)


def check_stages(channels: Sequence[int], depths: Sequence[int], blocks: Sequence[str]) -> None:
    if not channels or not len(channels) == len(depths) == len(blocks):
        raise ConfigError(
            f"channels {list(channels)}, depths {list(depths)} and blocks {list(blocks)} must have "
            "one entry per stage each"
        )


class BlockEncoder(nn.Module):
    """Pixels -> latents: linear code + convolutional residual.

    `channels`, `depths` and `blocks` list the stages from fine to coarse; the first works at
    1/`stem` of the frame's size and each further one at half the size of the one before, so the
    spatial compression is stem * 2**(stages - 1).
    """

    def __init__(
        self,
        latent_channels: int,
        stem: int,
        channels: Sequence[int],
        depths: Sequence[int],
        blocks: Sequence[BlockName],
    ):
        super().__init__()
        check_stages(channels, depths, blocks)
        self.stem = stem
        self.spatial_compression = stem * 2 ** (len(channels) - 1)
        self.linear = LinearBlocks(self.spatial_compression, latent_channels)
        self.embed = nn.Conv2d(3 * stem * stem, channels[0], 3, padding=1)
        self.stages = nn.ModuleList(map(stage, channels, depths, blocks))
        self.downsample = nn.ModuleList(
            nn.Conv2d(4 * fine, coarse, 1) for fine, coarse in pairwise(channels)
        )
        self.head = nn.Conv2d(channels[-1], latent_channels, 1)
        start_at_zero(self.head)

    def forward(self, frames: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> (N, latent_channels, H/s, W/s)."""
        x = self.embed(F.pixel_unshuffle(frames, self.stem))
        x = self.stages[0](x)
        for downsample, blocks in zip(self.downsample, self.stages[1:], strict=True):
            x = blocks(downsample(F.pixel_unshuffle(x, 2)))
        return self.linear.encode(frames) + self.head(x)


class BlockDecoder(nn.Module):
    """Latents -> pixels: the linear code's inverse + convolutional residual.

    The stages run from coarse to fine; the last works at 1/`stem` of the frame's size.
    """

    def __init__(
        self,
        latent_channels: int,
        stem: int,
        channels: Sequence[int],
        depths: Sequence[int],
        blocks: Sequence[BlockName],
    ):
        super().__init__()
        check_stages(channels, depths, blocks)
        self.stem = stem
        self.spatial_compression = stem * 2 ** (len(channels) - 1)
        self.linear = LinearBlocks(self.spatial_compression, latent_channels)
        self.embed = nn.Conv2d(latent_channels, channels[0], 3, padding=1)
        self.stages = nn.ModuleList(map(stage, channels, depths, blocks))
        self.upsample = nn.ModuleList(
            nn.Conv2d(coarse, 4 * fine, 1) for coarse, fine in pairwise(channels)
        )
        self.head = nn.Conv2d(channels[-1], 3 * stem * stem, 3, padding=1)
        start_at_zero(self.head)

    def forward(self, latents: Tensor) -> Tensor:
        """(N, latent_channels, h, w) -> (N, 3, h*s, w*s), about [-1, 1], not clamped."""
        x = self.stages[0](self.embed(latents))
        for upsample, blocks in zip(self.upsample, self.stages[1:], strict=True):
            x = blocks(F.pixel_shuffle(upsample(x), 2))
        return self.linear.decode(latents) + F.pixel_shuffle(self.head(x), self.stem)


class CompactCompressor(Compressor):
    """Semantic compressor of the embedded model."""

    temporal_compression = 1

    @register_to_config
    def __init__(
        self,
        *,
        latent_channels: Count = 16,
        stem: Count = 8,
        channels: Sequence[Count] = (192, 256, 256),
        depths: Sequence[Natural] = (1, 2, 2),
        blocks: Sequence[BlockName] = ("conv", "wide", "wide"),
        frames_per_chunk: Count = 8,
    ):
        super().__init__()
        self.latent_channels = latent_channels
        self.frames_per_chunk = frames_per_chunk
        self.encoder = BlockEncoder(latent_channels, stem, channels, depths, blocks)
        self.spatial_compression = self.encoder.spatial_compression

    @apply_forward_hook
    def encode(self, video: Tensor) -> Tensor:
        """(B, 3, F, H, W) in [-1, 1] -> (B, latent_channels, F, H/s, W/s), about unit variance."""
        return map_frames(self.encoder, video, self.frames_per_chunk)


class CompactPreviewer(PreviewDecoder):
    """Decodes semantic latents to full-size pixels without diffusion ("without LDM")."""

    @register_to_config
    def __init__(
        self,
        *,
        latent_channels: Count = 16,
        stem: Count = 8,
        channels: Sequence[Count] = (320, 256, 192),
        depths: Sequence[Natural] = (3, 3, 1),
        blocks: Sequence[BlockName] = ("wide", "wide", "conv"),
        frames_per_chunk: Count = 8,
    ):
        super().__init__()
        self.latent_channels = latent_channels
        self.frames_per_chunk = frames_per_chunk
        self.decoder = BlockDecoder(latent_channels, stem, channels, depths, blocks)
        self.upscaling = self.decoder.spatial_compression

    @apply_forward_hook
    def decode(self, latents: Tensor) -> Tensor:
        """(B, latent_channels, F, h, w) -> (B, 3, F, h*s, w*s) in [-1, 1]."""
        return map_frames(self.decoder, latents, self.frames_per_chunk).clamp(-1, 1)


class CompactVAE(Autoencoder):
    """Frame-wise f8, 4-channel autoencoder.

    The posterior is a Gaussian of fixed width: `posterior_std` in units of the latents, which have
    about unit variance. Training the decoder on samples makes it smooth where the diffusion model
    will be slightly wrong.
    """

    temporal_compression = 1
    scaling_factor, shift_factor = 1.0, 0.0
    decode_overlap = 0  # frames are decoded alone

    @register_to_config
    def __init__(
        self,
        *,
        latent_channels: Count = 4,
        stem: Count = 4,
        encoder_channels: Sequence[Count] = (128, 256),
        encoder_depths: Sequence[Natural] = (1, 1),
        decoder_channels: Sequence[Count] = (256, 128),
        decoder_depths: Sequence[Natural] = (2, 3),
        posterior_std: Weight = 0.05,
        frames_per_chunk: Count = 8,
    ):
        super().__init__()
        self.latent_channels = latent_channels
        self.posterior_std = posterior_std
        self.frames_per_chunk = self.decode_chunk = frames_per_chunk
        if len(encoder_channels) != len(decoder_channels):
            raise ConfigError(
                f"encoder_channels {list(encoder_channels)} and decoder_channels "
                f"{list(decoder_channels)} must have as many stages, so that sizes come back"
            )
        conv: Sequence[BlockName] = len(encoder_channels) * ["conv"]
        self.encoder = BlockEncoder(latent_channels, stem, encoder_channels, encoder_depths, conv)
        self.decoder = BlockDecoder(latent_channels, stem, decoder_channels, decoder_depths, conv)
        self.spatial_compression = self.encoder.spatial_compression

    def posterior(self, video: Tensor) -> tuple[Tensor, float]:
        """(B, 3, F, H, W) in [-1, 1] -> mean (B, latent_channels, F, H/8, W/8), and the width."""
        return map_frames(self.encoder, video, self.frames_per_chunk), self.posterior_std

    @apply_forward_hook
    def encode(
        self,
        video: Tensor,
        sample_posterior: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """(B, 3, F, H, W) in [-1, 1] -> (B, latent_channels, F, H/8, W/8), model-ready."""
        mean, std = self.posterior(video)
        if not sample_posterior:
            return mean
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        return mean + std * noise

    @apply_forward_hook
    def decode(self, latents: Tensor) -> Tensor:
        """(B, latent_channels, F, h, w) -> (B, 3, F, 8h, 8w), about [-1, 1], not clamped."""
        return map_frames(self.decoder, latents, self.frames_per_chunk)
