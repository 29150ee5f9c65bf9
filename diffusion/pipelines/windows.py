"""Running a network that knows one size over clips of any size, in overlapping windows.

Time, rows and columns are cut and blended alike: Spans say how one axis is covered, and a whole
clip takes three. Inside each step of a sampler this blends predictions, not finished results.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from math import ceil
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from diffusion.utils.errors import ConfigError
from diffusion.utils.windows import span_weights


@dataclass(frozen=True)
class Spans:
    """How one axis is covered, and what each span counts for at each of its positions.

    weights: (spans, window). Those that fall on one position sum to one.
    """

    starts: tuple[int, ...]
    window: int
    weights: Tensor

    @property
    def slices(self) -> list[slice]:
        return [slice(start, start + self.window) for start in self.starts]


class Windows(NamedTuple):
    """Spans of a whole clip: every combination is a window."""

    time: Spans
    rows: Spans
    columns: Spans


def blended_spans(length: int, window: int, overlap: int, multiple: int = 1) -> Spans:
    """As few spans as overlap by at least `overlap`, evenly spread, blended by linear ramps.

    All weights are above zero, so nothing that was computed is thrown away. Starts are multiples of
    `multiple`, but for the last, which is length - window. One span covers an axis no longer than
    the window.
    """
    widest_gap = (window - overlap) // multiple * multiple
    if overlap < 0 or widest_gap < 1:
        raise ConfigError(
            f"windows of {window} cannot overlap by {overlap}; use 0 to {window - multiple}"
        )
    if length <= window:
        return _whole(length)
    room = length - window
    gaps = ceil(room / widest_gap)
    # rounding up keeps every gap within the widest one
    starts = [ceil(room * i / (gaps * multiple)) * multiple for i in range(gaps)] + [room]
    return Spans(tuple(starts), window, span_weights(starts, window, length))


def published_windows(length: int, window: int) -> Spans:
    """Time as the published sampler cut it: half a window apart, blended as its frames came.

    The last window moves back to end at the last frame and may so replace most of the one before;
    ramps start at exactly zero and end at exactly one.
    """
    starts = _published_starts(length, window, window // 2)
    if length <= window:
        return _whole(length)
    return Spans(tuple(starts), window, _sequential_weights(starts, window, length, ramp=True))


def published_tiles(length: int, window: int) -> Spans:
    """Rows or columns as the published sampler cut them: each tile overwrites those before it."""
    starts = _published_starts(length, window, round(0.75 * window))
    if length <= window:
        return _whole(length)
    return Spans(tuple(starts), window, _sequential_weights(starts, window, length, ramp=False))


def apply_in_windows(
    net: Callable[..., Tensor], windows: Windows, *inputs: Tensor | None
) -> Tensor:
    """Run `net(*parts, origin=(frame, row, column))` on every window and blend what it returns.

    inputs: (B, C_i, F, H, W) each, or None which is passed on; `net` keeps the size and may change
    the channels. -> (B, C, F, H, W). `origin` is where the window starts, in latents.
    """
    if all(len(spans.starts) == 1 for spans in windows):
        return net(*inputs, origin=(0, 0, 0))
    out = None
    axes = (zip(spans.slices, spans.weights, strict=True) for spans in windows)
    for (frames, time_weights), (rows, row_weights), (columns, column_weights) in product(*axes):
        region = (..., frames, rows, columns)
        parts = (x if x is None else x[region] for x in inputs)
        part = net(*parts, origin=(frames.start, rows.start, columns.start))
        if out is None:
            size = [spans.starts[-1] + spans.window for spans in windows]
            out = part.new_zeros(*part.shape[:2], *size, dtype=torch.float32)
        weights = (
            rearrange(time_weights, "f -> f 1 1")
            * rearrange(row_weights, "h -> h 1")
            * column_weights
        )
        out[region] += weights.to(part.device) * part
    return out.to(part.dtype)


def _whole(length: int) -> Spans:
    return Spans((0,), length, torch.ones(1, length))


def _published_starts(length: int, window: int, step: int) -> list[int]:
    """0, step, 2 * step, ...; the last span moves back to end at `length`."""
    return [*range(0, length - window, step), max(0, length - window)]


def _sequential_weights(starts: list[int], window: int, length: int, *, ramp: bool) -> Tensor:
    """Weights (spans, window) of spans written one after the other over what was there.

    With `ramp`, an overlap of two or more positions is mixed with linspace(0, 1) as it is written.
    """
    weights = torch.zeros(len(starts), length)
    written = 0  # positions below this one hold something
    for i, start in enumerate(starts):
        new = torch.ones(window)
        overlap = written - start
        if ramp and overlap >= 2:
            new[:overlap] = torch.linspace(0, 1, overlap)
        weights[:i, start : start + window] *= 1 - new
        weights[i, start : start + window] = new
        written = start + window
    return torch.stack([row[s : s + window] for row, s in zip(weights, starts, strict=True)])
