"""The one bridge between videos and networks that work on single frames."""

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor

from diffusion.utils.progress import track


def map_frames(net: Callable[[Tensor], Tensor], video: Tensor, chunk: int) -> Tensor:
    """Apply an image network to every frame, `chunk` frames at a time.

    video: (B, C, F, H, W) -> (B, C', F, H', W'), for any frame count.
    """
    frames = rearrange(video, "b c f h w -> (b f) c h w")
    out = torch.cat([net(part) for part in track(frames.split(chunk))])
    return rearrange(out, "(b f) c h w -> b c f h w", b=len(video))
