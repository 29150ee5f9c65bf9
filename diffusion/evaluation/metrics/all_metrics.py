"""How close a reconstruction is to the original: the table of all metrics, and the plain ones.

Every metric takes videos (3, F, H, W) in [-1, 1], the reconstruction first, and never stops for
want of weights in the middle of a measurement: `missing` says beforehand what is not there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from diffusion.evaluation.metrics import perceptual, temporal, temporal_features
from diffusion.evaluation.metrics.structural import MS_SSIM_LEAST_SIDE, ms_ssim, ssim
from diffusion.utils.errors import UserError

__all__ = ["METRICS", "Metric", "build_metrics", "gradient", "ms_ssim", "psnr", "ssim"]

GRADIENT_FLOOR = (1 / 127.5) ** 2  # a level squared: keeps ratios finite where nothing is seen


def psnr(video: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB: two (3, F, H, W) in [-1, 1] -> (F,)."""
    frames = zip(video.unbind(1), reference.unbind(1), strict=True)  # a clip of doubles is large
    squared_error = torch.stack([(a.double() - b.double()).square().mean() for a, b in frames])
    return 10 * torch.log10(4 / squared_error.clamp_min(1e-12))


def gradient(video: Tensor, reference: Tensor) -> Tensor:
    """Energy of the differences of neighbouring pixels, relative to the original's: -> (F,).

    1 is right; less is blur, more is noise or ringing.
    """

    def energy(x: Tensor) -> Tensor:
        frames = x.float().unbind(1)
        squares = [f.diff(dim=-1).square().mean() + f.diff(dim=-2).square().mean() for f in frames]
        return torch.stack(squares) + GRADIENT_FLOOR

    return energy(video) / energy(reference)


def mean_of_means(values: Sequence[Tensor]) -> float:
    """Over the frames of each video, then over videos."""
    return torch.stack([value.double().mean() for value in values]).mean().item()


def nothing_missing() -> None:
    return None


@dataclass(frozen=True)
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
        """Two (3, F, H, W) in [-1, 1] on one device -> (F,) or (F-1,), see `compute`."""
        if reconstruction.shape != original.shape or len(original) != 3:
            shapes = f"{tuple(reconstruction.shape)} and {tuple(original.shape)}"
            raise ValueError(f"{self.name} compares two videos (3, F, H, W), not {shapes}")
        problem = self.unfit(*original.shape[1:]) or self.missing()
        if problem:
            raise UserError(problem)
        with torch.no_grad(), torch.autocast(original.device.type, enabled=False):
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
            "weights": {path.name: perceptual.sha256(path) for path in files},
        }


RGB = "RGB in [0, 1] as decoded, not rounded to 8 bits"
VGG = "VGG-16 of torchvision (ImageNet)"


def build_metrics(*, dino: Path | None = None, clip: Path | None = None) -> dict[str, Metric]:
    """All metrics by name, in the order of the table.

    dino, clip: folders of transformers for the two consistencies, which are missing without.
    """
    metrics = [
        Metric("psnr", "PSNR", True, f"dB, peak 1, mean squared error over {RGB}", psnr),
        Metric(
            "ssim",
            "SSIM",
            True,
            f"Wang et al. 2004; {RGB}, mean over channels; Gaussian window 11x11, sigma 1.5, "
            "K 0.01 and 0.03, edges reflected, whole frame",
            ssim,
            least_side=6,
        ),
        Metric(
            "ms_ssim",
            "MS-SSIM",
            True,
            "Wang et al. 2003; five scales; data and window as SSIM, contrast 5 px from the edges",
            ms_ssim,
            least_side=MS_SSIM_LEAST_SIDE,
        ),
        *(
            Metric(
                f"lpips_{net}",
                f"LPIPS ({net})",
                False,
                f"LPIPS 0.1, package lpips; {net} backbone of torchvision (ImageNet); whole frame",
                partial(perceptual.lpips_distance, net),
                partial(perceptual.lpips_missing, net),
                partial(perceptual.lpips_files, net),
                least_side=32,
            )
            for net in perceptual.BACKBONES
        ),
        Metric(
            "dists",
            "DISTS",
            False,
            f"Ding et al. 2020; {VGG}; whole frame, not resized",
            perceptual.dists,
            perceptual.dists_missing,
            perceptual.dists_files,
            least_side=32,
        ),
        *(
            Metric(
                f"effnet_lite{size}",
                f"EffNet-Lite{size}",
                False,
                f"squared distance of unit feature vectors at 5 scales of EfficientNet-Lite{size} "
                "(ImageNet); not LPIPS",
                partial(perceptual.effnet_distance, size),
                partial(perceptual.effnet_missing, size),
                partial(perceptual.effnet_files, size),
                least_side=32,
            )
            for size in perceptual.EFFNET_SIZES
        ),
        Metric(
            "gradient",
            "Gradient",
            None,
            "energy of differences of neighbouring pixels / the original's; 1 is right",
            gradient,
            least_side=2,
        ),
        Metric(
            "flicker",
            "Flicker",
            None,
            "mean |difference of neighbouring frames| / the original's; 1 is right",
            temporal.flicker,
            least_frames=2,
        ),
        Metric(
            "warped_error",
            "Warped error",
            False,
            "mean change of the error along the original's motion (Lucas-Kanade at short edge 256, "
            "occlusions left out), in 8-bit levels",
            temporal.warped_error,
            least_frames=2,
            least_side=16,
        ),
        Metric(
            "vb_flickering",
            "Flickering (VBench's)",
            True,
            "1 - mean |difference of neighbouring frames| / 255 of the 8-bit reconstruction",
            temporal.vbench_flickering,
            least_frames=2,
        ),
        *(
            Metric(
                name,
                label,
                True,
                definition,
                partial(compute, folder),
                partial(temporal_features.folder_missing, folder, kind),
                partial(temporal_features.folder_files, folder),
                least_frames=2,
                least_side=16,
                optional=True,
            )
            for name, label, compute, folder, kind, definition in (
                (
                    "subject_consistency",
                    "Subject consistency",
                    temporal_features.subject_consistency,
                    dino,
                    "dino",
                    "VBench's, class tokens of --dino through transformers",
                ),
                (
                    "background_consistency",
                    "Background consistency",
                    temporal_features.background_consistency,
                    clip,
                    "clip",
                    "VBench's, embeddings of --clip through transformers",
                ),
            )
        ),
        Metric(
            "rfvd",
            "rFVD",
            False,
            "Frechet distance of I3D logits (Kinetics-400, package cd-fvd), all originals against "
            "all reconstructions, one clip a video at 224x224; of few videos it says little",
            temporal_features.i3d_logits,
            temporal_features.i3d_missing,
            lambda: [temporal_features.i3d_weights().path],
            least_frames=temporal_features.I3D_LEAST_FRAMES,
            summarize=temporal_features.frechet_distance,
            per_frame=False,
            optional=True,
        ),
    ]
    return {metric.name: metric for metric in metrics}


METRICS = build_metrics()
