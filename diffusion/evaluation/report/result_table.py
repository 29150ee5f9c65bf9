"""The table of an evaluation, as Markdown and for the page, and its bars."""

import math
from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

from diffusion.evaluation.report.published import LABELS

# Facts of a model's row -> the head of their column. Pixels are those of all frames.
FACTS = {
    "spatial_compression": "compression in space",
    "temporal_compression": "compression in time",
    "channels": "channels",
    "values_per_pixel": "values per pixel",
    "bits_per_pixel": "bits per pixel",
    "parameters": "parameters (M)",
    "encode_seconds_per_megapixel": "encode, s per Mpixel",
    "decode_seconds_per_megapixel": "decode, s per Mpixel",
    "peak_memory_mb": "peak memory (MB)",
}


@dataclass(frozen=True)
class MetricColumn:
    name: str
    label: str
    higher_is_better: bool | None
    missing: str | None

    @property
    def arrow(self) -> str:
        """To what is better."""
        return {True: "↑", False: "↓", None: ""}[self.higher_is_better]

    @property
    def head(self) -> str:
        return f"{self.label} {self.arrow}".rstrip()


@dataclass(frozen=True)
class Cell:
    value: float | None
    best: bool = False
    missing: str | None = None

    @property
    def text(self) -> str:
        return "missing" if self.missing else number(self.value)


@dataclass(frozen=True)
class Row:
    """One model; those that are published and not measured here have no series and no facts.

    remark: beside the name.
    """

    name: str
    series: int | None
    remark: str
    metrics: list[Cell]
    facts: list[Cell]


@dataclass(frozen=True)
class Bar:
    """share: per cent of the longest bar."""

    model: str
    value: float | None
    series: int
    share: float


def list_metrics(results: Mapping[str, Any]) -> list[MetricColumn]:
    """Those of the table's columns: an optional one that is missing is none.

    Then those that only published rows of this protocol have.
    """
    metrics = {
        name: MetricColumn(name, entry["label"], entry["higher_is_better"], entry["missing"])
        for name, entry in results["metrics"].items()
        if not (entry.get("optional") and entry["missing"]) or has_values(results, name)
    }
    for row in results["published"]:
        if row.get("protocol") == results["protocol"].get("name"):
            for name in row["values"]:
                label, higher_is_better = LABELS.get(name, (name, None))
                metrics.setdefault(name, MetricColumn(name, label, higher_is_better, None))
    return list(metrics.values())


def has_values(results: Mapping[str, Any], metric: str) -> bool:
    return any(metric in model["means"] for model in results["models"].values())


def measured_rows(models: Mapping[str, Any], metrics: Sequence[MetricColumn]) -> list[Row]:
    best = {metric.name: best_value(models, metric) for metric in metrics}
    rows = []
    most = max((len(model["videos"]) for model in models.values()), default=0)
    for series, (name, model) in enumerate(models.items()):
        cells, measured = [], len(model["videos"])
        for metric in metrics:
            value = model["means"].get(metric.name)
            is_best = is_number(value) and value == best[metric.name]
            cells.append(Cell(value, is_best, metric.missing if value is None else None))
        facts = facts_of(model)
        partly = f"{measured} of {most} videos" if measured < most else ""
        rows.append(Row(name, series, partly, cells, [Cell(facts.get(f)) for f in FACTS]))
    return rows


def published_rows(results: Mapping[str, Any], metrics: Sequence[MetricColumn]) -> list[Row]:
    return [
        Row(
            row["name"],
            None,
            f"published for {row['protocol']}, not measured here",
            [Cell(row["values"].get(metric.name)) for metric in metrics],
            [Cell(None) for _ in FACTS],
        )
        for row in results["published"]
    ]


def best_value(models: Mapping[str, Any], metric: MetricColumn) -> float | None:
    values = [model["means"].get(metric.name) for model in models.values()]
    values = [value for value in values if is_number(value)]
    if not values or metric.higher_is_better is None:
        return None
    return max(values) if metric.higher_is_better else min(values)


def facts_of(model: Mapping[str, Any]) -> dict[str, Any]:
    """The codec's facts, but for what was measured, bits among it."""
    facts = {**model["facts"], **model["costs"]}
    return facts | {"parameters": facts["parameters"] / 1e6}


def bars(
    models: Mapping[str, Any], metrics: Sequence[MetricColumn]
) -> list[tuple[MetricColumn, list[Bar]]]:
    """Per metric that was measured, one bar for every model."""
    groups = []
    for metric in metrics:
        values = {name: model["means"].get(metric.name) for name, model in models.items()}
        longest = max((abs(v) for v in values.values() if is_number(v)), default=0)
        if longest:
            shares = [100 * abs(v) / longest if is_number(v) else 0 for v in values.values()]
            named = zip(values.items(), shares, strict=True)
            groups.append((metric, [Bar(*item, i, share) for i, (item, share) in enumerate(named)]))
    return groups


def is_number(value: object) -> bool:
    """False for what is missing, and for what cannot be drawn: NaN and infinity."""
    return isinstance(value, int | float) and math.isfinite(value)


def number(value: object) -> str:
    """Four significant digits, whole numbers as they are; a dash for no number."""
    if not is_number(value):
        return "∞" if value == math.inf else "–"
    if isinstance(value, int) or value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:#.4g}".rstrip(".")


def markdown(results: Mapping[str, Any]) -> str:
    """The table, ready to paste, and below it what its numbers depend on."""
    metrics, models = list_metrics(results), results["models"]
    head = ["model", *(metric.head for metric in metrics), *FACTS.values()]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for row in measured_rows(models, metrics) + published_rows(results, metrics):
        name = f"{row.name} ({row.remark})" if row.remark else row.name
        cells = [f"**{cell.text}**" if cell.best else cell.text for cell in row.metrics + row.facts]
        lines.append([name, *cells])
    table = [f"| {' | '.join(escaped(cell) for cell in line)} |" for line in lines]
    return "\n".join([*table, "", *(f"- {note}" for note in notes(results))]) + "\n"


def escaped(text: str) -> str:
    """Names of files and folders may hold what ends a cell."""
    return text.replace("|", "\\|").replace("\n", " ")


def notes(results: Mapping[str, Any]) -> Iterator[str]:
    """What is missing or left out, then what the numbers depend on."""
    protocol, environment = results["protocol"], results["environment"]
    metrics, models = results["metrics"], results["models"]
    for metric in metrics.values():
        if metric["missing"]:
            yield f"{metric['label']} is missing: {metric['missing']}"
    for name, model in models.items():
        for video, reason in model["failed"].items():
            yield f"{name}, {video}: {reason}"
    bad = results["bad_videos"]
    if bad:
        yield f"{counted(bad, 'video')} could not be read: {'; '.join(bad.values())}"
    yield (
        f"{counted(results['originals'], 'video')}, protocol {protocol['name']}: "
        f"{protocol['frames']}; {protocol['size']}; resized: {protocol['resize']}; "
        f"colour: {protocol['color']}; data range: {protocol['data_range']}; "
        f"averaged {protocol['averaging']}"
    )
    for metric in metrics.values():
        if not metric["missing"]:
            weights = "".join(f"; {k} {v[:16]}" for k, v in metric.get("weights", {}).items())
            yield f"{metric['label']}: {metric['definition']}{weights}"
    for name, model in models.items():
        # results.json has the rest: a diffusers' config, the libraries of FFmpeg.
        made_with = model["made_with"].items()
        short = {k: v for k, v in made_with if k == "weights" or not isinstance(v, Mapping)}
        yield f"{name}: {', '.join(f'{k} {v}' for k, v in flat(short))}"
    packages = ", ".join(f"{k} {v}" for k, v in environment.get("packages", {}).items())
    yield f"{environment.get('processor')}, {environment.get('device')}; {packages}"
    for note in dict.fromkeys(row["note"] for row in results["published"]):
        yield f"published rows: {note}"


def counted(things: Sized, name: str) -> str:
    """'1 video', '2 videos'."""
    return f"{len(things)} {name}{'s' * (len(things) != 1)}"


def flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as (dotted name, value)."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from flat(entry, f"{name}.{key}" if name else str(key))
    else:
        shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        yield name, shown
