"""A video and what noise, more of it in each frame, makes of it."""

import torch


def pair(frames: int = 3, height: int = 24, width: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    reference = torch.rand(3, frames, height, width, generator=generator) * 2 - 1
    noise = torch.randn(reference.shape, generator=generator)
    levels = torch.linspace(0.02, 0.2, frames).view(-1, 1, 1)
    return (reference + levels * noise).clamp(-1, 1), reference
