"""The rows of an evaluation's table, and its bars."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffusion.evaluation import report_charts as charts

FACTS = {
    "spatial_compression": "compression in space",
    "temporal_compression": "compression in time",
    "channels": "channels",
    "values_per_pixel": "values per pixel",
    "bits_per_pixel": "bits per pixel",
    "parameters": "parameters (M)",
    "encode": "encode, s per Mpixel",
    "decode": "decode, s per Mpixel",
    "peak_memory_mb": "peak memory (MB)",
}


@dataclass(frozen=True)
class Metric:
    name: str
    label: str
    higher_is_better: bool | None
    missing: str | None


@dataclass(frozen=True)
class Cell:
    value: float | None
    best: bool = False
    missing: str | None = None


@dataclass(frozen=True)
class Row:
    """One model; those that are published and not measured here have no series and no facts.

    remark: beside the name; note: below the table.
    """

    name: str
    series: int | None
    remark: str
    note: str
    metrics: list[Cell]
    facts: list[Cell]


@dataclass(frozen=True)
class Bar:
    """share: per cent of the longest bar."""

    model: str
    value: float | None
    series: int
    share: float


def list_metrics(results: Mapping[str, Any]) -> list[Metric]:
    """Those that were asked for, then those that only published rows of this protocol have."""
    metrics = {
        name: Metric(name, entry["label"], entry["higher_is_better"], entry["missing"])
        for name, entry in results["metrics"].items()
    }
    for row in results["published"]:
        if row.get("protocol") == results["protocol"].get("name"):
            for name in row["values"]:
                metrics.setdefault(name, Metric(name, name.replace("_", " "), None, None))
    return list(metrics.values())


def measured_rows(models: Mapping[str, Any], metrics: Sequence[Metric]) -> list[Row]:
    best = {metric.name: best_value(models, metric) for metric in metrics}
    rows = []
    most = max((len(model["videos"]) for model in models.values()), default=0)
    for series, (name, model) in enumerate(models.items()):
        cells, measured = [], len(model["videos"])
        for metric in metrics:
            value = model["means"].get(metric.name)
            is_best = charts.is_number(value) and value == best[metric.name]
            cells.append(Cell(value, is_best, metric.missing if value is None else None))
        facts = measured_facts(model)
        partly = f"{measured} of {most} videos" if measured < most else ""
        rows.append(Row(name, series, partly, "", cells, [Cell(facts.get(f)) for f in FACTS]))
    return rows


def published_rows(results: Mapping[str, Any], metrics: Sequence[Metric]) -> list[Row]:
    return [
        Row(
            row["name"],
            None,
            "published, not measured here",
            row.get("note") or "",
            [Cell(row["values"].get(metric.name)) for metric in metrics],
            [Cell(None) for _ in FACTS],
        )
        for row in results["published"]
    ]


def best_value(models: Mapping[str, Any], metric: Metric) -> float | None:
    values = [model["means"].get(metric.name) for model in models.values()]
    values = [value for value in values if charts.is_number(value)]
    if not values or metric.higher_is_better is None:
        return None
    return max(values) if metric.higher_is_better else min(values)


def measured_facts(model: Mapping[str, Any]) -> dict[str, Any]:
    """The codec's facts; bits, seconds and memory as they were measured, over all videos."""
    facts, videos = dict(model["facts"]), list(model["videos"].values())
    pixels = sum(video["frames"] * video["height"] * video["width"] for video in videos)
    if facts.get("parameters") is not None:
        facts["parameters"] /= 1e6
    if pixels and all(charts.is_number(video.get("bits")) for video in videos):
        facts["bits_per_pixel"] = sum(video["bits"] for video in videos) / pixels
    for part in ("encode", "decode"):
        seconds = [(video.get("seconds") or {}).get(part) for video in videos]
        if pixels and all(map(charts.is_number, seconds)):
            facts[part] = sum(seconds) / (pixels / 1e6)
    memory = [video.get("peak_memory_mb") for video in videos]
    facts["peak_memory_mb"] = max(filter(charts.is_number, memory), default=None)
    return facts


def bars(models: Mapping[str, Any], metrics: Sequence[Metric]) -> list[tuple[Metric, list[Bar]]]:
    """Per metric that was measured, one bar for every model."""
    groups = []
    for metric in metrics:
        values = {name: model["means"].get(metric.name) for name, model in models.items()}
        longest = max((abs(v) for v in values.values() if charts.is_number(v)), default=0)
        if longest:
            shares = [100 * abs(v) / longest if charts.is_number(v) else 0 for v in values.values()]
            named = zip(values.items(), shares, strict=True)
            groups.append((metric, [Bar(*item, i, share) for i, (item, share) in enumerate(named)]))
    return groups
