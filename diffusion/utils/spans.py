"""Overlapping spans along one axis, and the weights that blend them into a whole.

For two axes take the outer product of the row weights and the column weights: it sums to one too.
"""

from itertools import pairwise

import torch
from torch import Tensor


def span_starts(length: int, window: int, overlap: int) -> list[int]:
    """Starts of the spans of `window` positions that cover 0..length-1.

    Neighbours share `overlap` positions; the last span is moved back to end at `length`, so it may
    share more. One span when length <= window.
    """
    assert 0 <= overlap < window, f"overlap {overlap} must be in 0..{window - 1}"
    if length <= window:
        return [0]
    return [*range(0, length - window, window - overlap), length - window]


def blend_weights(window: int, overlap_before: int, overlap_after: int) -> Tensor:
    """(window,): linear ramps over what is shared with either neighbour, one in between.

    All weights are strictly positive, so that no computed position is thrown away. Where two spans
    meet, the ramp down of one and the ramp up of the other sum to one.
    """
    position = torch.arange(1, window + 1, dtype=torch.float32)
    rise = (position / (overlap_before + 1)).clamp(max=1)
    fall = (position / (overlap_after + 1)).clamp(max=1).flip(0)
    return torch.minimum(rise, fall)


def span_weights(starts: list[int], window: int, length: int) -> Tensor:
    """(len(starts), min(window, length)): the weight of every position of every span.

    The weights that fall on one position sum to one, also where a last span that was moved back
    makes three of them meet.
    """
    window = min(window, length)
    overlaps = [0, *(a + window - b for a, b in pairwise(starts)), 0]
    weights = torch.stack([blend_weights(window, *pair) for pair in pairwise(overlaps)])
    total = torch.zeros(length)
    for start, span in zip(starts, weights, strict=True):
        total[start : start + window] += span
    return torch.stack(
        [span / total[start : start + window] for start, span in zip(starts, weights, strict=True)]
    )
