"""More frames: the cascade restores frames between those of a slow video, without fine-tuning."""

from collections.abc import Iterable, Iterator
from itertools import tee

import torch
from torch import Tensor

from diffusion.pipelines.cascade import Cascade
from diffusion.pipelines.padding import pad_reflect


def stretched_length(num_frames: int, factor: int) -> int:
    """Frames of a video with factor - 1 new ones between any two."""
    return (num_frames - 1) * factor + 1


def stretch(pieces: Iterable[Tensor], factor: int) -> Iterator[Tensor]:
    """(B, C, f, ...) of one stream after the other -> with blends between neighbouring frames.

    Frame i of the stream becomes frame factor * i; those between change linearly.
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


def stretched_pieces(
    pipeline: Cascade, videos: Iterable[Tensor], factor: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Known frames (B, 3, f, H, W) -> what `Cascade.restore_stream` makes more of.

    Blends of semantic latents, and for refiners that build on a preview, of the frames themselves:
    a cross-fade at its full sharpness, where the latents' preview would be soft.
    """
    step = pipeline.compressor.spatial_compression
    encoded, shown = tee(pad_reflect(video, step) for video in videos)
    yield from zip(
        stretch(map(pipeline.encode, encoded), factor), stretch(shown, factor), strict=True
    )


def repeat(pieces: Iterable[Tensor], factor: int) -> Iterator[Tensor]:
    """As `stretch`, every frame shown until the next."""
    last: Tensor | None = None
    for piece in pieces:
        known = piece if last is None else torch.cat([last, piece], dim=2)
        last = known[:, :, -1:]
        yield known[:, :, :-1].repeat_interleave(factor, dim=2)
    if last is not None:
        yield last
