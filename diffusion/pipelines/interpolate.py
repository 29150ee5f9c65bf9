"""More frames: the cascade restores frames between those of a slow video, without fine-tuning."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor


def stretched_length(num_frames: int, factor: int) -> int:
    """Frames of a video with factor - 1 new ones between any two."""
    return (num_frames - 1) * factor + 1


def stretch(pieces: Iterable[Tensor], factor: int) -> Iterator[Tensor]:
    """(B, C, f, ...) of one stream after the other -> with blends between neighbouring frames.

    Frame i of the stream becomes frame factor * i; those between change linearly. Of semantic
    latents this is what the refiner restores frames from; of pixels it is a plain cross-fade.
    """
    shares = torch.arange(factor) / factor
    last: Tensor | None = None
    for piece in pieces:
        known = piece if last is None else torch.cat([last, piece], dim=2)
        last = known[:, :, -1:]
        if known.shape[2] > 1:
            before, after = known[:, :, :-1], known[:, :, 1:]
            blends = [(1 - share) * before + share * after for share in shares]
            yield torch.stack(blends, dim=3).flatten(2, 3)
    if last is not None:
        yield last


def repeat(pieces: Iterable[Tensor], factor: int) -> Iterator[Tensor]:
    """As `stretch`, every frame shown until the next."""
    last: Tensor | None = None
    for piece in pieces:
        known = piece if last is None else torch.cat([last, piece], dim=2)
        last = known[:, :, -1:]
        yield known[:, :, :-1].repeat_interleave(factor, dim=2)
    if last is not None:
        yield last
