"""Larger frames: the cascade restores what a model of low resolution made, without fine-tuning.

What the refiner is told of the small video is upsampled further than it was in training.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from math import gcd
from typing import Final

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from diffusion.pipelines.cascade import Cascade
from diffusion.pipelines.padding import pad_reflect
from diffusion.utils.errors import ConfigError

CONDITIONS: Final = ("enlarged", "compressor", "vae")


class Upscaler:
    """Videos (B, 3, F, H, W) -> what `Cascade.restore_stream` makes larger ones of.

    scale: of height and width.
    condition: what the refiner sees. "enlarged": the semantic latents of the video enlarged
        bicubically. "compressor": those of the small video. "vae": the small video's VAE latents,
        for a refiner with as many condition channels.
    Refiners that build on a preview get the enlarged video for it.

    pipeline: the given one's networks, told to restore from these; the given one is not changed.
    """

    def __init__(self, pipeline: Cascade, scale: int, condition: str = "enlarged"):
        if condition not in CONDITIONS:
            raise ConfigError(f"condition {condition!r} is not one of {', '.join(CONDITIONS)}")
        self.scale, self.condition = scale, condition
        conditioning, step = pipeline.conditioning, pipeline.compressor.spatial_compression
        channels, upsampling = pipeline.compressor.latent_channels, conditioning.upsampling
        self.multiple, factor = step // gcd(step, scale), conditioning.scale
        if condition == "compressor":
            self.multiple, upsampling = step, scale * upsampling
        if condition == "vae":  # its latents come scaled
            channels, upsampling, factor = pipeline.vae.latent_channels, scale, 1.0
            self.multiple = pipeline.vae.spatial_compression
        base = pipeline.vae.latent_channels if conditioning.uses_base else 0
        if channels + base != pipeline.refiner.condition_channels:
            raise ConfigError(
                f"this refiner takes {pipeline.refiner.condition_channels} condition channels, "
                f"condition {condition!r} has {channels + base}; choose another of "
                f"{', '.join(CONDITIONS)}"
            )
        self.pipeline = pipeline.with_conditioning(
            replace(conditioning, upsampling=upsampling, scale=factor)
        )

    def pieces(self, videos: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Small videos (B, 3, f, h, w) in [-1, 1] -> condition and enlarged video of the same."""
        for video in videos:
            padded = pad_reflect(video, self.multiple)
            enlarged = enlarge(padded, self.scale)
            if self.condition == "enlarged":
                yield self.pipeline.encode(enlarged), enlarged
            elif self.condition == "compressor":
                yield self.pipeline.encode(padded), enlarged
            else:
                yield self.pipeline.encode_vae(padded), enlarged


def enlarge(video: Tensor, scale: int) -> Tensor:
    """(B, C, F, H, W) in [-1, 1] -> (B, C, F, scale * H, scale * W), bicubically."""
    frames = rearrange(video, "b c f h w -> (b f) c h w")
    frames = functional.interpolate(frames, scale_factor=scale, mode="bicubic")
    return rearrange(frames, "(b f) c h w -> b c f h w", b=len(video)).clamp(-1, 1)


def reduce(video: Tensor, scale: int) -> Tensor:
    """(B, C, F, H, W), sides multiples of `scale` -> (B, C, F, H / scale, W / scale)."""
    frames = rearrange(video, "b c f h w -> (b f) c h w")
    size = [side // scale for side in video.shape[-2:]]
    frames = functional.interpolate(frames, size, mode="bicubic", antialias=True)
    return torch.clamp(rearrange(frames, "(b f) c h w -> b c f h w", b=len(video)), -1, 1)
