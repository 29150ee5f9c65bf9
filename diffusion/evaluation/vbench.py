"""VBench (Huang et al. 2024, arXiv:2311.17982), the six dimensions of the published table.

Its pins clash with ours: it runs in an environment of its own (scripts/install_vbench.sh), one
process a dimension. It fetches the weights that a dimension needs when it first runs, and subject
consistency also runs code from the repository facebookresearch/dino.
"""

import copy
import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion.config import ROOT
from diffusion.evaluation.report.media import inside
from diffusion.utils.errors import UserError
from diffusion.utils.progress import track

ENVIRONMENT = ROOT / ".venv-vbench"
INSTALL = "bash scripts/install_vbench.sh"
REMEDY = (
    "it downloads its weights when it first runs, into VBENCH_CACHE_DIR (~/.cache/vbench): run the "
    "same command where it can"
)
DRIVER = Path(__file__).with_name("vbench_driver.py")
DEFINITION = "VBench 0.1.5 in mode custom_input, of the mp4 files; all frames"

# In the order of the published table; what the scores of single videos are divided by.
DIMENSIONS = {
    "subject_consistency": 1,
    "background_consistency": 1,
    "temporal_flickering": 1,
    "motion_smoothness": 1,
    "imaging_quality": 100,  # its mean is of [0, 1], its videos' scores are not
    "aesthetic_quality": 1,
}


@dataclass(frozen=True)
class Scores:
    """VBench's own mean (over frames, in some dimensions), and one score for each video."""

    mean: float
    videos: list[float]


def metric_name(dimension: str) -> str:
    return f"vbench_{dimension}"


def interpreter(environment: Path) -> Path:
    return environment / "bin" / "python"


def missing(environment: Path = ENVIRONMENT) -> str | None:
    """Why VBench cannot run, in one line, or None."""
    if os.access(interpreter(environment), os.X_OK):
        return None
    return f"VBench is not installed; {INSTALL}"


def score_videos(
    videos: Sequence[Path],
    dimension: str,
    *,
    device: str = "cpu",
    environment: Path = ENVIRONMENT,
) -> Scores:
    """Of mp4 files; UserError if VBench is not there, fails, or skips a video."""
    if dimension not in DIMENSIONS:
        raise UserError(f"VBench's {dimension!r} is not one of {', '.join(DIMENSIONS)}")
    if problem := missing(environment):
        raise UserError(problem)
    with tempfile.TemporaryDirectory(prefix="vbench-") as work:
        folder, output = Path(work, "videos"), Path(work, "scores.json")
        names = link_videos(videos, folder)
        # -I: neither PYTHONPATH nor the driver's folder, whose `vbench` is this file.
        command = [interpreter(environment), "-I", DRIVER, dimension, folder, output, device]
        done = subprocess.run(
            list(map(str, command)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        if done.returncode or not output.exists():
            reason = last_line(done.stderr)
            raise UserError(f"VBench's {dimension} failed ({reason}); {REMEDY}")
        scores = json.loads(output.read_text())
    skipped = [
        video for video, name in zip(videos, names, strict=True) if name not in scores["videos"]
    ]
    if skipped:
        raise UserError(f"VBench's {dimension} could not read {skipped[0]}; make it anew")
    unit = DIMENSIONS[dimension]
    return Scores(scores["mean"], [scores["videos"][name] / unit for name in names])


def link_videos(videos: Sequence[Path], folder: Path) -> list[str]:
    """A folder as VBench wants it; numbers for names, which it would take for prompts."""
    folder.mkdir()
    names = [f"{index:06d}.mp4" for index in range(len(videos))]
    for name, video in zip(names, videos, strict=True):
        (folder / name).symlink_to(video.resolve())
    return names


def last_line(text: str) -> str:
    """The end of a traceback says what went wrong; what a progress bar drew over is dropped."""
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing; is there enough memory?"


def add_vbench(
    results: Mapping[str, Any],
    folder: Path,
    *,
    dimensions: Sequence[str] = tuple(DIMENSIONS),
    device: str = "cpu",
    environment: Path = ENVIRONMENT,
) -> dict[str, Any]:
    """`results` (of results.json in `folder`) with VBench's scores of every model's mp4 files.

    Scores that are there already stay. A dimension that fails is missing, with the reason, and
    the others go on.
    """
    results = copy.deepcopy(dict(results))
    for dimension in track(dimensions):
        name, problem = metric_name(dimension), None
        for spec, model in results["models"].items():
            if not model["videos"] or name in model["means"]:
                continue
            try:
                files = reconstructions(spec, model, folder)
                scores = score_videos(files, dimension, device=device, environment=environment)
            except UserError as error:
                problem = str(error)
                break  # it would fail, or wait for a download in vain, for every model
            model["means"][name] = scores.mean
            for video, value in zip(model["videos"].values(), scores.videos, strict=True):
                video["metrics"][name] = {"mean": value, "per_frame": []}
        results["metrics"][name] = describe(dimension, problem)
    return results


def describe(dimension: str, missing: str | None) -> dict[str, Any]:
    """As `Metric.describe`."""
    return {
        "label": "VBench " + dimension.replace("_", " "),
        "higher_is_better": True,
        "missing": missing,
        "optional": False,
        "definition": DEFINITION,
        "weights": {},
    }


def keep_scores(results: Mapping[str, Any], earlier: Mapping[str, Any]) -> dict[str, Any]:
    """`results` with VBench's scores of `earlier` ones, where a model restored the same videos."""
    results = copy.deepcopy(dict(results))
    for dimension in DIMENSIONS:
        name = metric_name(dimension)
        for spec, model in results["models"].items():
            before = earlier["models"].get(spec)
            if (
                before is None
                or before["videos"].keys() != model["videos"].keys()
                or before["made_with"] != model["made_with"]
                or name not in before["means"]
            ):
                continue
            results["metrics"].setdefault(name, describe(dimension, None))
            model["means"][name] = before["means"][name]
            for video, entry in model["videos"].items():
                entry["metrics"][name] = before["videos"][video]["metrics"][name]
    return results


def reconstructions(spec: str, model: Mapping[str, Any], folder: Path) -> list[Path]:
    files = [inside(folder, video.get("reconstruction")) for video in model["videos"].values()]
    if None in files:
        video = list(model["videos"])[files.index(None)]
        raise UserError(f"{spec}: the reconstruction of {video} is not in {folder}; make it anew")
    return files
