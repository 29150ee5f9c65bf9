"""Measuring codecs on videos: every model on every video, by one or several processes."""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from tqdm import tqdm

from diffusion.app.benchmarking.speed import cpu_name
from diffusion.app.environment import describe_environment
from diffusion.app.evaluating.measure_codec import (
    is_measured,
    keep_originals,
    measure_or_say_why,
    warm_up,
)
from diffusion.app.reconstruction.stage_times import Stages
from diffusion.app.training.encode_set import Part
from diffusion.data.training.bad_videos import locked
from diffusion.evaluation.codecs.codecs_by_name import CodecOptions, build_codec, parse_spec
from diffusion.evaluation.metrics.all_metrics import build_metrics
from diffusion.evaluation.metrics.consistency import folder_missing
from diffusion.evaluation.metrics.metric import Metric
from diffusion.evaluation.protocol import Protocol
from diffusion.evaluation.report.published import PUBLISHED
from diffusion.evaluation.report.report import write_report
from diffusion.evaluation.report.result_table import (
    MetricColumn,
    counted,
    has_values,
    list_metrics,
    measured_rows,
    published_rows,
)
from diffusion.evaluation.report.results import (
    Measurements,
    Run,
    merge,
    read_json,
    write_results,
)
from diffusion.evaluation.vbench import DIMENSIONS, add_vbench, keep_scores
from diffusion.utils.errors import UserError

# Those that change numbers.
PACKAGES = ("torch", "torchvision", "torchmetrics", "diffusers", "transformers", "lpips", "av")


@dataclass(frozen=True)
class Evaluation:
    """What is measured on what; `folder` keeps it.

    models: specs of `build_codec`.
    videos: name -> path; `name_videos` of what the protocol selects.
    """

    models: Sequence[str]
    videos: Mapping[str, Path]
    protocol: Protocol
    metrics: Mapping[str, Metric]
    folder: Path


def measure_part(what: Evaluation, options: CodecOptions, part: Part) -> None:
    """Measure what is not in the folder yet of this process's videos."""
    measurements = Measurements(what.folder)
    check_models(measurements, what, options)
    mine = dict(list(what.videos.items())[part.index :: part.count])
    good = keep_originals(measurements, mine, what.protocol)
    usable = {name: metric for name, metric in what.metrics.items() if metric.missing() is None}
    total = len(what.models) * len(good)
    with tqdm(total=total, disable=part.index > 0, delay=1.0, leave=False, file=sys.stderr) as bar:
        for model in what.models if good else ():
            missing = [n for n in good if not is_measured(measurements.read(model, n), usable)]
            bar.total -= len(good) - len(missing)  # so that the time left is right
            if not missing:
                continue
            bar.set_description(model, refresh=False)
            codec = build_codec(model, options)
            for index, name in enumerate(missing):
                clip = what.protocol.read(good[name])
                if index == 0 and options.device.type == "cuda":
                    warm_up(codec, clip)
                record = measure_or_say_why(codec, clip, name, usable, what.folder, options)
                measurements.write(model, name, record)
                bar.update()
            del codec  # before the next one is loaded


def check_models(measurements: Measurements, what: Evaluation, options: CodecOptions) -> None:
    """Build every codec once, so that the last one is not refused after hours with the first.

    Also if it is not what it was when it was measured before.
    """
    for model in what.models:
        parse_spec(model)  # at once what needs no loading
    with locked(measurements.folder / ".lock"):
        measurements.check("", what.protocol.describe())
    for model in what.models:
        codec = build_codec(model, options)
        with locked(measurements.folder / ".lock"):
            measurements.check(model, codec.made_with(), facts=codec.facts())


def collect(what: Evaluation, device: torch.device) -> dict[str, Any]:
    """Write results.json, .csv and .md of all that is in the folder by now."""
    measurements = Measurements(what.folder)
    shared = {
        "protocol": what.protocol.describe(),
        "environment": environment(device),
        "published": list(PUBLISHED),
    }
    with locked(measurements.folder / ".lock"):
        results = merge(measurements, Run(what.models, what.videos, what.metrics, shared))
        earlier = read_json(what.folder / "results.json")
        results = keep_scores(results, earlier) if earlier else results
        write_results(results, what.folder)
    if len(results["bad_videos"]) == len(what.videos):
        raise UserError(
            f"none of {counted(what.videos, 'video')} can be measured; the first: "
            f"{next(iter(results['bad_videos'].values()))}"
        )
    return results


def publish(
    results: Mapping[str, Any], folder: Path, dimensions: Sequence[str], device: torch.device
) -> None:
    """Write report.html and print the table, after adding VBench's `dimensions`."""
    stages = Stages()
    if dimensions:
        with stages("VBench"):
            results = add_vbench(results, folder, dimensions=dimensions, device=str(device))
        write_results(results, folder)
    with stages("report"):
        write_report(results, folder)
    print_table(results, folder)


def choose_dimensions(names: Sequence[str] | None) -> list[str]:
    """VBench's, all of the published table where none is named; none for None."""
    for name in names or ():
        if name not in DIMENSIONS:
            raise UserError(f"--vbench {name}: is unknown; use {', '.join(DIMENSIONS)}")
    return [] if names is None else list(names or DIMENSIONS)


def environment(device: torch.device) -> dict[str, Any]:
    """What numbers and seconds depend on."""
    everything = describe_environment()
    packages = everything.pop("packages")
    return {
        **{key: value for key, value in everything.items() if key != "git_changes"},
        "command": shlex.join(everything["command"]),
        "device": str(device),
        "processor": cpu_name(),
        "threads": torch.get_num_threads(),
        "packages": {name: packages[name] for name in PACKAGES if name in packages},
    }


def name_videos(paths: Sequence[Path]) -> dict[str, Path]:
    """Name -> path: the file's name without its suffix, with folders where that is ambiguous."""
    stems = [path.stem for path in paths]
    return {
        stem if stems.count(stem) == 1 else str(path): path
        for stem, path in zip(stems, paths, strict=True)
    }


def start_workers(count: int) -> None:
    """Run this command `count` times at once, each on its part; UserError if one fails."""
    # Ended by a signal, this process must not leave its workers behind.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    threads = max(1, (os.cpu_count() or 1) // count)
    variables = {"OMP_NUM_THREADS": str(threads)} | os.environ
    command = [sys.executable, *sys.argv, "--workers", "1"]
    workers = [
        subprocess.Popen([*command, "--part", f"{i + 1}/{count}"], env=variables)
        for i in range(count)
    ]
    try:
        codes = [worker.wait() for worker in workers]
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.terminate()
                worker.wait()
    if any(codes):
        raise UserError("a worker failed, see above; the same command continues")


def parse_part(text: str | None) -> Part:
    """'1/4' is the first of four parts; None is what torchrun says, or everything."""
    if text is None:
        return Part.of_process()
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--part {text}: is not of the form i/n, such as 1/4")
    return Part(int(match[1]) - 1, int(match[2]))


def is_finished(results: Mapping[str, Any], models: Sequence[str]) -> bool:
    """Whether every model was tried on every video, by this process or others."""
    tried = [
        len(model["videos"]) + len(model["failed"])
        for name, model in results["models"].items()
        if name in models
    ]
    count = len(results["originals"])
    return len(tried) == len(set(models)) and all(number == count for number in tried)


def choose_metrics(
    names: Sequence[str], dino: Path | None = None, clip: Path | None = None
) -> dict[str, Metric]:
    """All, or those named."""
    for option, folder in (("--dino", dino), ("--clip", clip)):
        if folder is not None and (problem := folder_missing(folder, option.strip("-"))):
            raise UserError(f"{option}: {problem}")
    metrics = build_metrics(dino=dino, clip=clip)
    for name in names:
        if name not in metrics:
            raise UserError(f"--metrics {name}: is unknown; use {', '.join(metrics)}")
    return {name: metrics[name] for name in names or metrics}


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
