"""What a metric is: a function of two videos, and all that must be said beside its numbers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diffusion.evaluation.metrics.weight_files import sha256
from diffusion.utils.compute import Compute, inference
from diffusion.utils.errors import UserError

# The same numbers on every machine: no shortened products, no choice among ways to sum.
EXACT = Compute(tf32=False, cudnn_benchmark=False)


def mean_of_means(values: Sequence[Tensor]) -> float:
    """Over the frames of each video, then over videos."""
    return torch.stack([value.double().mean() for value in values]).mean().item()


def nothing_missing() -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric, and what its numbers depend on.

    label: for the head of a table.
    higher_is_better: None where 1 is right, or where the value only describes.
    definition: one line for readers of the numbers.
    compute: two (3, F, H, W) in [-1, 1] -> (F,) for frames, (F-1,) for pairs of neighbours; what
        `summarize` takes, where that is not the mean.
    why_missing: one line on what is not installed and how to get it, or None.
    files: weights that the numbers depend on; asked for only where nothing is missing.
    least_frames, least_side: of a video that can be measured.
    summarize: all videos' values -> the one number of a model.
    per_frame: whether the values of a video mean something on their own.
    optional: needs what few have; where that is missing, the table has no column for it.
    """

    name: str
    label: str
    higher_is_better: bool | None
    definition: str
    compute: Callable[[Tensor, Tensor], Tensor]
    why_missing: Callable[[], str | None] = nothing_missing
    files: Callable[[], list[Path]] = list
    least_frames: int = 1
    least_side: int = 1
    summarize: Callable[[Sequence[Tensor]], float] = mean_of_means
    per_frame: bool = True
    optional: bool = False

    def missing(self) -> str | None:
        return self.why_missing()

    def unfit(self, num_frames: int, height: int, width: int) -> str | None:
        """Why a video of this size cannot be measured, in one line, or None."""
        if num_frames < self.least_frames:
            return f"{self.name} needs {self.least_frames} frames or more, not {num_frames}"
        if min(height, width) < self.least_side:
            return f"{self.name} needs {self.least_side} pixels a side or more: {width}x{height}"
        return None

    def __call__(self, reconstruction: Tensor, original: Tensor) -> Tensor:
        """Two (3, F, H, W) in [-1, 1] on one device -> (F,) or (F-1,) there, see `compute`."""
        if reconstruction.shape != original.shape or len(original) != 3:
            shapes = f"{tuple(reconstruction.shape)} and {tuple(original.shape)}"
            raise ValueError(f"{self.name} compares two videos (3, F, H, W), not {shapes}")
        problem = self.unfit(*original.shape[1:]) or self.missing()
        if problem:
            raise UserError(problem)
        with inference(original.device, torch.float32, EXACT):
            return self.compute(reconstruction, original)

    def describe(self) -> dict[str, object]:
        """What stands beside the numbers; weights by SHA-256."""
        missing = self.missing()
        files = [] if missing else self.files()
        return {
            "label": self.label,
            "higher_is_better": self.higher_is_better,
            "missing": missing,
            "optional": self.optional,
            "definition": self.definition,
            "weights": {path.name: sha256(path) for path in files},
        }
