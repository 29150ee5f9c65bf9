"""Where things go in a chart; the page draws them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from diffusion.evaluation.report.result_table import is_number, number

WIDTH, HEIGHT = 560.0, 260.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, 16.0, 12.0, 40.0
NAME_HEIGHT = 14.0


@dataclass(frozen=True)
class Axis:
    """A range of values along `start` to `end` in pixels."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """Pixel of a value."""
        low, high, value = (self._scaled(v) for v in (self.low, self.high, value))
        return round(self.start + (self.end - self.start) * (value - low) / (high - low), 1)

    def ticks(self) -> list[float]:
        """Round values from low to high, three to seven."""
        if self.logarithmic:
            exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)))
            narrow = self.high < 10 * self.low
            steps = (1, 1.5, 2, 3, 4, 5, 6, 8) if narrow else (1, 2, 5)
            ticks = [m * 10.0**e for e in exponents for m in steps]
        else:
            step = round_step((self.high - self.low) / 7)
            ticks = [step * i for i in range(math.ceil(self.low / step), int(self.high / step) + 1)]
        return [tick for tick in ticks if self.low <= tick <= self.high]

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.logarithmic else value


@dataclass(frozen=True)
class Mark:
    """One dot of a scatter."""

    name: str
    series: int
    x: float
    y: float
    label: str
    name_y: float  # beside y, moved where names would cover one another
    flipped: bool  # the name goes to the left of the dot


@dataclass(frozen=True)
class Line:
    """One curve; a piece is SVG's `points`, and a new one begins after a value that is missing."""

    name: str
    series: int
    pieces: list[str]


@dataclass(frozen=True)
class Chart:
    title: str
    x_label: str
    y_label: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    marks: Sequence[Mark] = ()
    lines: Sequence[Line] = ()


def line_chart(
    curves: Mapping[str, tuple[int, Sequence[float | None]]], title: str, x_label: str, y_label: str
) -> Chart | None:
    """curves: name -> (series, value per frame); None if there is nothing to draw."""
    values = [v for _, curve in curves.values() for v in curve if is_number(v)]
    if not values:
        return None
    num_frames = max(len(curve) for _, curve in curves.values())
    x = Axis(0, max(1, num_frames - 1), LEFT, WIDTH - RIGHT)
    y = _vertical(values)
    lines = [
        Line(name, series, [_points(piece, x, y) for piece in _pieces(curve)])
        for name, (series, curve) in curves.items()
    ]
    x_ticks = [tick for tick in x.ticks() if tick == int(tick)]
    return Chart(title, x_label, y_label, _placed(x, x_ticks), _placed(y, y.ticks()), lines=lines)


def scatter(
    dots: Mapping[str, tuple[int, float | None, float | None]],
    title: str,
    x_label: str,
    y_label: str,
) -> Chart | None:
    """dots: name -> (series, x, y), x on a logarithmic axis; None if there is nothing to draw."""
    dots = {name: dot for name, dot in dots.items() if all(map(is_number, dot[1:])) and dot[1] > 0}
    if not dots:
        return None
    abscissae = [x for _, x, _ in dots.values()]
    x = Axis(min(abscissae) / 1.6, max(abscissae) * 1.6, LEFT, WIDTH - RIGHT, logarithmic=True)
    y = _vertical([y for _, _, y in dots.values()])
    flipped = {name: x(across) > (LEFT + WIDTH) / 2 for name, (_, across, _) in dots.items()}
    name_ys: dict[str, float] = {}
    for side in (False, True):
        column = {name: y(up) for name, (_, _, up) in dots.items() if flipped[name] == side}
        name_ys |= _spread(column)
    marks = [
        Mark(
            name,
            series,
            x(across),
            y(up),
            f"{name}: {number(across)} {x_label}, {number(up)} {y_label}",
            name_ys[name],
            flipped[name],
        )
        for name, (series, across, up) in dots.items()
    ]
    return Chart(title, x_label, y_label, _placed(x, x.ticks()), _placed(y, y.ticks()), marks=marks)


def _spread(heights: Mapping[str, float]) -> dict[str, float]:
    """Names -> heights near those given, none of them covering another or below the plot."""
    names, spread = sorted(heights, key=heights.__getitem__), dict(heights)
    for above, name in pairwise(names):
        spread[name] = max(spread[name], spread[above] + NAME_HEIGHT)
    lowest = HEIGHT - BOTTOM - NAME_HEIGHT / 2
    for name in reversed(names):
        spread[name] = lowest = min(spread[name], lowest)
        lowest -= NAME_HEIGHT
    return spread


def round_step(step: float) -> float:
    """The next larger of 1, 2, 5 times a power of ten."""
    unit = 10.0 ** math.floor(math.log10(step))
    return next(m * unit for m in (1, 2, 5, 10) if m * unit >= step * (1 - 1e-9))


def _vertical(values: Sequence[float]) -> Axis:
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 1
    return Axis(low - margin, high + margin, HEIGHT - BOTTOM, TOP)


def _placed(axis: Axis, ticks: Sequence[float]) -> list[tuple[float, str]]:
    return [(axis(tick), f"{tick:.4g}") for tick in ticks]


def _pieces(curve: Sequence[float | None]) -> list[list[tuple[int, float]]]:
    pieces: list[list[tuple[int, float]]] = [[]]
    for frame, value in enumerate(curve):
        if is_number(value):
            pieces[-1].append((frame, value))
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _points(piece: Sequence[tuple[int, float]], x: Axis, y: Axis) -> str:
    if len(piece) == 1:
        piece = [*piece, *piece]  # a line of no length, with round ends: a dot
    return " ".join(f"{x(frame)},{y(value)}" for frame, value in piece)
