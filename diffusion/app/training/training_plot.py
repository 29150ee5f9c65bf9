"""The curves of training runs as one picture."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from diffusion.utils.errors import UserError
from diffusion.utils.files import replacing
from diffusion.utils.scalars import read_scalars

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Names of scalars that are no terms of the loss -> what the panel is called; drawn in this order.
TITLES = {
    "validation/psnr": "validation PSNR [dB]",
    "validation/ssim": "validation SSIM",
    "lr": "learning rate",
    "grad_norm": "gradient norm, before clipping",
    "clips_per_second": "clips per second",
    "seconds": "seconds per step",
    "data_share": "share of the time spent waiting for data",
}
FROM_ZERO = ("lr", "clips_per_second", "seconds", "data_share")
AS_THEY_ARE = ("validation/psnr", "validation/ssim", "lr")  # drawn without smoothing
COLUMNS = 3
# Okabe and Ito's, which colour-blind readers can tell apart.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


@dataclass(frozen=True)
class Curve:
    """One scalar of one run: rising steps, and the finite value recorded at each."""

    steps: np.ndarray
    values: np.ndarray


def read_curves(work_dir: Path) -> dict[str, Curve]:
    """Every scalar that a run recorded, by name. UserError where there is nothing to draw."""
    if not work_dir.is_dir():
        raise UserError(f"{work_dir}: no such folder; pass the --work-dir of a training run")
    path = work_dir / "scalars.jsonl"
    records = read_scalars(path) if path.exists() else []
    points: dict[str, dict[int, float]] = {}
    for record in records:
        for name, value in record.items():
            if name != "step" and np.isfinite(value):
                points.setdefault(name, {})[record["step"]] = value
    if not points:
        raise UserError(
            f"{path}: holds no scalars yet; a run writes them every train.loop.log_interval"
        )
    return {
        name: Curve(*(np.array(column) for column in zip(*sorted(values.items()), strict=True)))
        for name, values in points.items()
    }


def smoothed(values: np.ndarray, reach: int) -> np.ndarray:
    """Means over up to `reach` neighbours on either side, so that nothing lags but the ends."""
    index = np.arange(len(values))
    first, end = np.maximum(index - reach, 0), np.minimum(index + reach + 1, len(values))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[end] - sums[first]) / (end - first)


def limits(values: np.ndarray) -> tuple[float, float]:
    """The range to show: of all values, or of 96 % of them where the others dwarf them."""
    low, high = values.min(), values.max()
    usual_low, usual_high = np.quantile(values, [0.02, 0.98])
    if high - low > 4 * (usual_high - usual_low) > 0:
        low, high = usual_low, usual_high
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def panels(runs: Sequence[Mapping[str, Curve]]) -> list[str]:
    """Names of scalars in the order of the picture: the loss, its terms, what TITLES names."""
    names = dict.fromkeys(name for run in runs for name in run)
    terms = [name for name in names if name != "loss" and name not in TITLES]
    if len(terms) == 1:
        terms = []  # it is the loss
    return [name for name in ("loss", *terms, *TITLES) if name in names]


def plot_training(work_dirs: Sequence[Path], output: Path) -> None:
    """One panel for each scalar, one colour for each run."""
    from matplotlib.figure import Figure  # slow; and without pyplot it needs no display
    from matplotlib.lines import Line2D

    runs = {str(work_dir): read_curves(work_dir) for work_dir in work_dirs}
    names = panels(list(runs.values()))
    rows = -(-len(names) // COLUMNS)
    figure = Figure(figsize=(5 * COLUMNS, 3.4 * rows + 0.6), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.1)  # inches around each panel
    axes = list(figure.subplots(rows, COLUMNS, squeeze=False, sharex=True).flat)
    for name, panel in zip(names, axes, strict=False):
        curves = {
            color: run[name]
            for run, color in zip(runs.values(), itertools.cycle(COLORS))
            if name in run
        }
        draw(panel, name, curves)
    for panel in axes[len(names) :]:
        panel.set_visible(False)
    lines = [Line2D([], [], color=color) for _, color in zip(runs, itertools.cycle(COLORS))]
    figure.legend(lines, runs, loc="outside upper center", ncols=4, frameon=False)
    with replacing(output) as partial:
        figure.savefig(partial, format="png", dpi=100)


def draw(panel: "Axes", name: str, curves: Mapping[str, Curve]) -> None:
    """Curves by colour: as recorded faintly, and smoothed after cutting what is out of range."""
    low, high = limits(np.concatenate([curve.values for curve in curves.values()]))
    for color, curve in curves.items():
        if name in AS_THEY_ARE:
            marker = "o" if name.startswith("validation") else None
            panel.plot(curve.steps, curve.values, color=color, marker=marker, markersize=3)
        else:
            smooth = smoothed(curve.values.clip(low, high), len(curve.values) // 25)
            panel.plot(curve.steps, curve.values, color=color, alpha=0.25, linewidth=0.8)
            panel.plot(curve.steps, smooth, color=color, zorder=3)  # over the other runs
    panel.set_ylim(0 if name in FROM_ZERO else low, high)
    panel.set_title(TITLES.get(name, name), fontsize=11)
    panel.set_xlabel("step")
    panel.locator_params(axis="x", nbins=5, integer=True)
    panel.ticklabel_format(scilimits=(-3, 5), useOffset=False)
    panel.tick_params(labelbottom=True)
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
