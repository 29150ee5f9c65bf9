"""The table of an evaluation in a terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from diffusion.evaluation.report.result_table import (
    MetricColumn,
    counted,
    has_values,
    list_metrics,
    measured_rows,
    published_rows,
)


def print_table(results: Mapping[str, Any], folder: Path) -> None:
    """The quality columns that were measured, as many as the terminal holds; files have all."""
    console = Console()
    metrics = [m for m in list_metrics(results) if has_values(results, m.name)]
    count = len(metrics)
    shown = terminal_table(results, metrics)
    unbounded = Console(width=10_000)
    while count > 1 and unbounded.measure(shown).maximum > console.width:
        count -= 1
        shown = terminal_table(results, metrics[:count])
    console.print(shown)
    if count < len(metrics):
        more = counted(metrics[count:], "more column")
        console.print(f"results.md has {more}", highlight=False)
    for metric in results["metrics"].values():
        if metric["missing"]:
            text = f"{metric['label']} is missing: {metric['missing']}"
            console.print(escape(text), highlight=False, soft_wrap=True)
    bad = results["bad_videos"]
    if bad:
        text = f"{counted(bad, 'video')} could not be read; results.md names them"
        console.print(text, highlight=False)
    for name in ("report.html", "results.md", "results.csv", "results.json"):
        console.print(f"  {folder / name}", highlight=False, soft_wrap=True, markup=False)


def terminal_table(results: Mapping[str, Any], metrics: Sequence[MetricColumn]) -> Table:
    shown = Table(Column("model", overflow="fold"))
    for metric in metrics:
        shown.add_column(metric.head, justify="right")
    for row in measured_rows(results["models"], metrics) + published_rows(results, metrics):
        remark = row.remark if row.series is not None else "published"
        name = f"{row.name} ({remark})" if remark else row.name
        shown.add_row(escape(name), *(cell.text for cell in row.metrics))
    return shown
