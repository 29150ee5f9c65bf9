"""What an evaluation is asked to measure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffusion.evaluation.metrics.all_metrics import build_metrics
from diffusion.evaluation.metrics.consistency import folder_missing
from diffusion.evaluation.metrics.metric import Metric
from diffusion.evaluation.protocol import Protocol
from diffusion.evaluation.vbench import DIMENSIONS
from diffusion.utils.errors import UserError


@dataclass(frozen=True)
class Evaluation:
    """What is measured on what; `folder` keeps it.

    models: specs of `build_codec`.
    videos: name -> path; `name_videos` of what the protocol selects.
    dimensions: of VBench, which are scored when all else is measured.
    """

    models: Sequence[str]
    videos: Mapping[str, Path]
    protocol: Protocol
    metrics: Mapping[str, Metric]
    folder: Path
    dimensions: Sequence[str] = ()

    def usable_metrics(self) -> dict[str, Metric]:
        """Those that nothing is missing for."""
        return {name: metric for name, metric in self.metrics.items() if metric.missing() is None}


def name_videos(paths: Sequence[Path]) -> dict[str, Path]:
    """Name -> path: the file's name without its suffix, with folders where that is ambiguous."""
    stems = [path.stem for path in paths]
    return {
        stem if stems.count(stem) == 1 else str(path): path
        for stem, path in zip(stems, paths, strict=True)
    }


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


def choose_dimensions(names: Sequence[str] | None) -> list[str]:
    """VBench's, all of the published table where none is named; none for None."""
    for name in names or ():
        if name not in DIMENSIONS:
            raise UserError(f"--vbench {name}: is unknown; use {', '.join(DIMENSIONS)}")
    return [] if names is None else list(names or DIMENSIONS)
