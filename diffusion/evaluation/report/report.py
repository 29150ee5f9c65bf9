"""The page that shows an evaluation: one file, nothing fetched, every name escaped."""

import hashlib
import math
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from diffusion.evaluation.report import charts
from diffusion.evaluation.report.media import (
    Budget,
    Picture,
    inside,
    read_pictures,
    video_source,
)
from diffusion.evaluation.report.result_table import (
    FACTS,
    MetricColumn,
    bars,
    facts_of,
    flat,
    is_number,
    list_metrics,
    measured_rows,
    number,
    published_rows,
)
from diffusion.utils.files import make_folder, replacing
from diffusion.utils.progress import track

PAGE = Path(__file__).parent / "report_page"
MOST_VIDEOS = 6  # shown in curves, pictures and players; the tables have all
FRAMES_SHOWN = 3  # of each of them, in pictures
PICTURE_BYTES, VIDEO_BYTES = 24 * 2**20, 16 * 2**20


@dataclass(frozen=True)
class Shown:
    """What the page shows of one video; of every model, the original first."""

    name: str
    curves: charts.Chart | None
    frames: list[int]
    pictures: list[tuple[str, list[Picture]]]
    players: list[tuple[str, str | None]]


def write_report(
    results: Mapping[str, Any],
    folder: str | Path,
    *,
    picture_bytes: int = PICTURE_BYTES,
    video_bytes: int = VIDEO_BYTES,
) -> Path:
    """report.html in `folder`, where the videos that `results` (of results.json) names lie."""
    folder = make_folder(folder)
    page = render(results, folder, Budget(picture_bytes), Budget(video_bytes))
    path = folder / "report.html"
    with replacing(path) as partial:
        # File names need not be Unicode.
        partial.write_text(page, encoding="utf-8", errors="backslashreplace")
    return path


def render(
    results: Mapping[str, Any], folder: Path, picture_budget: Budget, video_budget: Budget
) -> str:
    metrics, models = list_metrics(results), results["models"]
    environment = Environment(
        loader=FileSystemLoader(PAGE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    script = (PAGE / "report.js").read_text()
    return environment.get_template("report.html").render(
        models=list(models),
        metrics=metrics,
        fact_labels=list(FACTS.values()),
        rows=measured_rows(models, metrics) + published_rows(results, metrics),
        missing=[(m["label"], m["missing"]) for m in results["metrics"].values() if m["missing"]],
        notes=published_notes(results["published"]),
        bars=bars(models, metrics),
        scatters=scatters(models, metrics),
        conditions="; ".join(
            str(results["protocol"][key])
            for key in ("name", "frames", "size")
            if key in results["protocol"]
        ),
        num_videos=len(video_names(models)),
        videos=[
            show_video(results, name, folder, picture_budget, video_budget)
            for name in track(chosen_videos(models))
        ],
        per_video=per_video(models),
        protocol=list(flat(results["protocol"])),
        definitions=list(flat(definitions(results["metrics"]))),
        machine=list(flat(results["environment"])),
        made_with=list(flat({name: model["made_with"] for name, model in models.items()})),
        bad_videos=results["bad_videos"],
        failures=list(failures(results)),
        size=(charts.WIDTH, charts.HEIGHT),
        plot=(charts.LEFT, charts.WIDTH - charts.RIGHT, charts.TOP, charts.HEIGHT - charts.BOTTOM),
        style=Markup((PAGE / "report.css").read_text()),
        script=Markup(script),
        script_hash=b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def scatters(models: Mapping[str, Any], metrics: Sequence[MetricColumn]) -> list[charts.Chart]:
    """Quality over bits per pixel, for every metric that has a better and a worse."""
    bits = {name: facts_of(model)["bits_per_pixel"] for name, model in models.items()}
    drawn = [
        charts.scatter(
            {
                name: (series, bits[name], model["means"].get(metric.name))
                for series, (name, model) in enumerate(models.items())
            },
            f"{metric.label}: {'higher' if metric.higher_is_better else 'lower'} is better",
            "bits per pixel",
            metric.label,
        )
        for metric in metrics
        if metric.higher_is_better is not None
    ]
    return [chart for chart in drawn if chart is not None]


def video_names(models: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(name for model in models.values() for name in model["videos"]))


def video_psnr(models: Mapping[str, Any], name: str) -> dict[str, float | None]:
    """Model -> mean PSNR of one video."""
    videos = {model: entry["videos"].get(name) or {} for model, entry in models.items()}
    return {
        model: video.get("metrics", {}).get("psnr", {}).get("mean")
        for model, video in videos.items()
    }


def per_video(models: Mapping[str, Any]) -> list[tuple[str, list[float | None]]]:
    """PSNR of every video, the hardest first."""
    rows = {name: list(video_psnr(models, name).values()) for name in video_names(models)}

    def ease(name: str) -> float:
        known = [value for value in rows[name] if is_number(value)]
        return sum(known) / len(known) if known else math.inf

    return [(name, rows[name]) for name in sorted(rows, key=ease)]


def chosen_videos(models: Mapping[str, Any]) -> list[str]:
    """From the hardest to the easiest, evenly spread."""
    names = [name for name, _ in per_video(models)]
    count = min(MOST_VIDEOS, len(names))
    return [names[round(i * (len(names) - 1) / max(1, count - 1))] for i in range(count)]


def show_video(
    results: Mapping[str, Any],
    name: str,
    folder: Path,
    picture_budget: Budget,
    video_budget: Budget,
) -> Shown:
    entries = {
        model: entry["videos"][name]
        for model, entry in results["models"].items()
        if name in entry["videos"]
    }
    files = {"original": inside(folder, results["originals"].get(name))} | {
        model: inside(folder, entry.get("reconstruction")) for model, entry in entries.items()
    }
    frames = shown_frames(min(entry["frames"] for entry in entries.values()))
    pictures = [
        (model, read)
        for model, path in files.items()
        if (read := read_pictures(path, frames)) is not None
    ]
    if not picture_budget.take(sum(p.size for _, read in pictures for p in read)):
        pictures = []
    series = {model: i for i, model in enumerate(results["models"])}
    curves = {
        model: (series[model], entry["metrics"].get("psnr", {}).get("per_frame") or [])
        for model, entry in entries.items()
    }
    return Shown(
        name,
        charts.line_chart(curves, name, "frame", "PSNR dB"),
        frames,
        pictures,
        [(model, video_source(path, folder, video_budget)) for model, path in files.items()],
    )


def shown_frames(num_frames: int) -> list[int]:
    """In the middle of as many equal parts."""
    count = min(FRAMES_SHOWN, num_frames)
    return [(2 * i + 1) * num_frames // (2 * count) for i in range(count)]


def published_notes(published: Sequence[Mapping[str, Any]]) -> list[tuple[list[str], str]]:
    """What must be said of published rows; the same of several only once."""
    names: dict[str, list[str]] = {}
    for row in published:
        note = "; ".join(filter(None, [row.get("protocol"), row.get("note")]))
        names.setdefault(note, []).append(row["name"])
    return [(rows, note) for note, rows in names.items() if note]


def failures(results: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Videos that could not be read, and those that one model could not take."""
    yield from results["bad_videos"].items()
    for name, model in results["models"].items():
        for video, reason in model["failed"].items():
            yield f"{video}, {name}", reason


def definitions(metrics: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What stands in no other part of the page: how each metric is defined, its weights."""
    shown = {"label", "higher_is_better", "missing", "optional"}
    return {
        entry["label"]: {key: value for key, value in entry.items() if key not in shown}
        for entry in metrics.values()
    }
