"""Bilinear resizing of videos and latents, frame by frame."""

from einops import rearrange
from torch import Tensor
from torch.nn import functional


def resize_bilinear(video: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, F, H, W) -> (B, C, F, *size), without antialiasing."""
    frames = rearrange(video, "b c f h w -> (b f) c h w")
    frames = functional.interpolate(frames, size=size, mode="bilinear", align_corners=False)
    return rearrange(frames, "(b f) c h w -> b c f h w", b=len(video))
