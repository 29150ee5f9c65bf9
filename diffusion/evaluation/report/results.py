"""Measurements on disk: one file per model and video, merged into results.json, .csv and .md."""

import csv
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion.evaluation.metrics.metric import Metric
from diffusion.evaluation.report.result_table import markdown
from diffusion.utils.errors import UserError
from diffusion.utils.files import make_folder, replacing, write_json

ORIGINAL = "original"  # folder of the originals, beside those of the models
MADE_WITH = ".made_with.json"  # beside a model's measurements; no video's file begins with a dot


def file_name(name: str) -> str:
    """A file's name for a model or a video; different for different names."""
    plain = re.sub(r"[^\w.-]", "_", name, flags=re.ASCII)[:80]
    if plain == name and not name.startswith("."):
        return name
    return f"{plain.lstrip('.')}-{hashlib.sha256(name.encode('utf-8', 'replace')).hexdigest()[:8]}"


def read_json(path: Path) -> dict[str, Any] | None:
    """None where there is no such file."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read; delete it, it is measured again") from error


class Measurements:
    """What was measured so far, so that a run that was ended continues with what is missing.

    Files are whole or not there, and belong to one model and video: several processes may measure
    different videos into one folder.
    """

    def __init__(self, folder: Path):
        self.folder = make_folder(folder)

    def path(self, model: str, video: str) -> Path:
        return self.folder / "measured" / file_name(model) / f"{file_name(video)}.json"

    def read(self, model: str, video: str) -> dict[str, Any] | None:
        return read_json(self.path(model, video))

    def write(self, model: str, video: str, values: Mapping[str, Any]) -> None:
        write_json(self.path(model, video), values)

    def check(self, model: str, made_with: Mapping[str, Any], **more: Any) -> None:
        """Note what `model` is measured with, or refuse if that is not what it was before.

        model: "" for what all models share.
        """
        made_with = json.loads(json.dumps(made_with))  # as read back
        before = self.about(model)
        if before is not None and before["made_with"] != made_with:
            other = before["made_with"]
            changed = [k for k in made_with | other if made_with.get(k) != other.get(k)]
            folder = self.folder / "measured" / file_name(model)
            raise UserError(
                f"{folder}: was measured with another {', '.join(changed)}; choose another "
                "--output, or delete that folder to measure again"
            )
        about = {"name": model, "made_with": made_with, **more}
        write_json(self.folder / "measured" / file_name(model) / MADE_WITH, about)

    def about(self, model: str) -> dict[str, Any] | None:
        """What `check` noted."""
        return read_json(self.folder / "measured" / file_name(model) / MADE_WITH)

    def models(self, first: Sequence[str]) -> list[str]:
        """All that were measured, `first` in this order, then others by name."""
        files = sorted((self.folder / "measured").glob(f"*/{MADE_WITH}"))
        names = [read_json(path)["name"] for path in files]
        return [*(n for n in first if n in names), *(n for n in names if n not in first)]


def value_of(values: Tensor) -> dict[str, Any]:
    """A metric of one video."""
    return {"mean": values.double().mean().item(), "per_frame": values.flatten().tolist()}


@dataclass(frozen=True)
class Run:
    """What was asked for.

    models, videos: names; videos -> path.
    shared: protocol, environment and published of results.json.
    """

    models: Sequence[str]
    videos: Mapping[str, Path]
    metrics: Mapping[str, Metric]
    shared: Mapping[str, Any] = field(default_factory=dict)


def merge(measurements: Measurements, run: Run) -> dict[str, Any]:
    """results.json of all that was measured, also by earlier runs in this folder."""
    originals, bad = {}, {}
    for name, path in run.videos.items():
        original = measurements.read(ORIGINAL, name)
        if original is not None and "bad" in original:
            bad[str(path)] = original["bad"]
        elif original is not None:
            originals[name] = original["video"]
    models = {}
    for model in measurements.models(run.models):
        about = measurements.about(model)
        records = {name: measurements.read(model, name) for name in originals}
        failed = {n: r["failed"] for n, r in records.items() if r is not None and "failed" in r}
        videos = {n: r for n, r in records.items() if r is not None and n not in failed}
        models[model] = {
            "facts": about["facts"],
            "made_with": about["made_with"],
            "videos": {name: without_values(video) for name, video in videos.items()},
            "failed": failed,
            "means": means(videos, run.metrics),
            "costs": costs(videos),
        }
    return {
        **run.shared,
        "metrics": {name: metric.describe() for name, metric in run.metrics.items()},
        "models": models,
        "originals": originals,
        "bad_videos": bad,
    }


def without_values(video: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of results.json: without what metrics of all videos together need of each."""
    metrics = {
        name: {key: value for key, value in entry.items() if key != "values"}
        for name, entry in video["metrics"].items()
    }
    return {**video, "metrics": metrics}


def means(
    videos: Mapping[str, Mapping[str, Any]], metrics: Mapping[str, Metric]
) -> dict[str, float]:
    """Metric -> one number, of the videos that it can measure; a missing one is left out."""
    numbers = {}
    for name, metric in metrics.items():
        entries = [video["metrics"].get(name, {}) for video in videos.values()]
        values = [
            torch.tensor(entry.get("values") or entry["per_frame"], dtype=torch.float64)
            for entry in entries
            if entry.get("values") or entry.get("per_frame")
        ]
        if values:
            numbers[name] = metric.summarize(values)
    return numbers


def costs(videos: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """Over all videos: seconds per megapixel, bits per pixel; the largest peak of memory."""
    if not videos:
        return {}
    pixels = sum(v["frames"] * v["height"] * v["width"] for v in videos.values())
    seconds = {
        f"{stage}_seconds_per_megapixel": 1e6
        * sum(v["seconds"][stage] for v in videos.values())
        / pixels
        for stage in ("encode", "decode")
    }
    peaks = [v["peak_memory_mb"] for v in videos.values() if v["peak_memory_mb"] is not None]
    return {
        **seconds,
        "peak_memory_mb": max(peaks, default=None),
        "bits_per_pixel": sum(v["bits"] for v in videos.values()) / pixels,
    }


def write_results(results: Mapping[str, Any], folder: Path) -> None:
    """results.json, results.csv (a row per model and video) and results.md (the table)."""
    write_json(folder / "results.json", results)
    with replacing(folder / "results.csv") as partial, partial.open("w", newline="") as file:
        csv.writer(file).writerows(csv_rows(results))
    with replacing(folder / "results.md") as partial:
        partial.write_text(markdown(results))


def csv_rows(results: Mapping[str, Any]) -> Iterable[list[Any]]:
    sizes, seconds = ("frames", "height", "width", "fps"), ("encode", "decode")
    metrics = list(results["metrics"])
    head = [f"{stage}_seconds" for stage in seconds]
    yield ["model", "video", *sizes, *metrics, *head, "peak_memory_mb", "bits"]
    for model, entry in results["models"].items():
        for name, video in entry["videos"].items():
            values = [video["metrics"].get(metric, {}).get("mean") for metric in metrics]
            times = [video["seconds"][stage] for stage in seconds]
            costs = [video["peak_memory_mb"], video["bits"]]
            yield [model, name, *(video[key] for key in sizes), *values, *times, *costs]
