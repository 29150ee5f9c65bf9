"""How time, rows and columns are cut into overlapping spans, and how tiles of frames are blended.

Inside each step of a sampler this blends predictions, not finished results: spans agree where they
meet. Time, of which not all is there at once, is blended in streams.py.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice, product
from math import ceil
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from diffusion.utils.devices import sent
from diffusion.utils.errors import ConfigError
from diffusion.utils.spans import span_starts, span_weights

Units = list[tuple[Tensor, ...]]
"""What a network is to be run on: the inputs of one call each."""

Runner = Callable[[Callable[..., Tensor], Units], Iterable[Tensor]]
"""Runs a network on units, wherever it does so; results come in the units' order."""


@dataclass(frozen=True)
class Spans:
    """How one axis is covered, and what each span counts for at each of its positions.

    weights: (spans, window). Those that fall on one position sum to one.
    """

    starts: tuple[int, ...]
    window: int
    weights: Tensor

    @property
    def length(self) -> int:
        return self.starts[-1] + self.window

    @property
    def slices(self) -> list[slice]:
        return [slice(start, start + self.window) for start in self.starts]

    @property
    def segments(self) -> list[tuple[int, int]]:
        """(start, stop) of what lies between the starts of two spans, up to the end.

        A span ends the work on the segment that begins with it.
        """
        return list(zip(self.starts, [*self.starts[1:], self.length], strict=True))

    def to(self, device: torch.device) -> "Spans":
        """With the weights on `device`."""
        return Spans(self.starts, self.window, sent(self.weights, device))

    def since(self, first: int) -> "Spans":
        """Without the spans before `first`; the axis is numbered as before."""
        return Spans(self.starts[first:], self.window, self.weights[first:])

    def first_before(self, span: int) -> int:
        """The first span that shares positions with this one."""
        return next(i for i, s in enumerate(self.starts) if s + self.window > self.starts[span])

    def looked_back_on(self, span: int, steps: int) -> int:
        """The first span that `steps` steps of a sampler at this one depend on."""
        for _ in range(steps):  # every step looks one window further back
            span = self.first_before(span)
        return span

    def scaled(self, factor: int) -> "Spans":
        """The same cut of an axis that is `factor` times finer, with ramps as long."""
        starts = [factor * start for start in self.starts]
        window, length = factor * self.window, factor * self.length
        return Spans(tuple(starts), window, span_weights(starts, window, length))


class Tiles(NamedTuple):
    """Spans of rows and of columns: every combination is a tile."""

    rows: Spans
    columns: Spans

    @property
    def regions(self) -> list[tuple[Any, ...]]:
        return [(..., *sides) for sides in product(self.rows.slices, self.columns.slices)]

    @property
    def weights(self) -> list[Tensor]:
        """(window, window) for every region."""
        pairs = product(self.rows.weights, self.columns.weights)
        return [rearrange(row, "h -> h 1") * column for row, column in pairs]

    def to(self, device: torch.device) -> "Tiles":
        return Tiles(self.rows.to(device), self.columns.to(device))

    def scaled(self, factor: int) -> "Tiles":
        return Tiles(self.rows.scaled(factor), self.columns.scaled(factor))


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
        return whole_span(length)
    room = length - window
    gaps = ceil(room / widest_gap)
    # rounding up keeps every gap within the widest one
    starts = [ceil(room * i / (gaps * multiple)) * multiple for i in range(gaps)] + [room]
    return Spans(tuple(starts), window, span_weights(starts, window, length))


def chunk_spans(length: int, chunk: int, overlap: int) -> Spans:
    """Equal steps; the last chunk moves back to end at the last frame, as in `VideoVAE.decode`."""
    starts = span_starts(length, chunk, overlap)
    return Spans(tuple(starts), min(chunk, length), span_weights(starts, chunk, length))


def published_windows(length: int, window: int) -> Spans:
    """Time as the published sampler cut it: half a window apart, blended as its frames came.

    The last window moves back to end at the last frame and may so replace most of the one before;
    ramps start at exactly zero and end at exactly one.
    """
    starts = _published_starts(length, window, window // 2)
    if length <= window:
        return whole_span(length)
    return Spans(tuple(starts), window, _sequential_weights(starts, window, length, ramp=True))


def published_tiles(length: int, window: int) -> Spans:
    """Rows or columns as the published sampler cut them: each tile overwrites those before it."""
    starts = _published_starts(length, window, round(0.75 * window))
    if length <= window:
        return whole_span(length)
    return Spans(tuple(starts), window, _sequential_weights(starts, window, length, ramp=False))


def whole_span(length: int) -> Spans:
    return Spans((0,), length, torch.ones(1, length))


def run_here(net: Callable[..., Tensor], units: Units) -> Iterable[Tensor]:
    """One call after the other, each as its result is asked for."""
    return (net(*unit) for unit in units)


def apply_in_tiles(
    net: Callable[..., Tensor],
    units: Units,
    tiles: Tiles,
    tiles_out: Tiles | None = None,
    run: Runner = run_here,
) -> list[Tensor]:
    """Run `net` on every tile of every unit, and blend what it returns: one result per unit.

    units: tensors (..., H, W) that `tiles` covers. -> (..., H', W') that `tiles_out` covers; by
    default the same, with its weights on their device. One tile changes nothing.
    """
    regions, tiles_out = tiles.regions, tiles_out or tiles
    if len(regions) == 1:
        return list(run(net, units))
    parts = [tuple(x[region] for x in unit) for unit in units for region in regions]
    results = iter(run(net, parts))
    return [_blend_tiles(results, tiles_out) for _ in units]


def _blend_tiles(results: Iterator[Tensor], tiles: Tiles) -> Tensor:
    """Takes as many results as there are tiles."""
    pairs = list(zip(tiles.regions, tiles.weights, strict=True))
    parts = islice(results, len(pairs))
    first = next(parts)
    size = (*first.shape[:-2], tiles.rows.length, tiles.columns.length)
    out = first.new_zeros(size, dtype=torch.float32)
    for (region, weights), part in zip(pairs, chain([first], parts), strict=True):
        out[region] += weights * part
    return out.to(first.dtype)


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
