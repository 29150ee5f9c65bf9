"""The metrics of the table, in its order; each is declared beside the code that computes it.

Every metric takes videos (3, F, H, W) in [-1, 1], the reconstruction first, and never stops for
want of weights in the middle of a measurement: `missing` says beforehand what is not there.
"""

from pathlib import Path

from diffusion.evaluation.metrics import consistency, fidelity, perceptual, temporal
from diffusion.evaluation.metrics.dists import DISTS_METRIC
from diffusion.evaluation.metrics.metric import Metric
from diffusion.evaluation.metrics.rfvd import RFVD
from diffusion.evaluation.metrics.sharpness import GRADIENT


def build_metrics(*, dino: Path | None = None, clip: Path | None = None) -> dict[str, Metric]:
    """All metrics by name, in the order of the table.

    dino, clip: folders of transformers for the two consistencies, which are missing without.
    """
    metrics = [
        fidelity.PSNR,
        fidelity.SSIM,
        fidelity.MS_SSIM,
        *perceptual.LPIPS,
        DISTS_METRIC,
        *perceptual.EFFNETS,
        GRADIENT,
        temporal.FLICKER,
        temporal.WARPED_ERROR,
        temporal.VBENCH_FLICKERING,
        consistency.subject_metric(dino),
        consistency.background_metric(clip),
        RFVD,
    ]
    return {metric.name: metric for metric in metrics}


METRICS = build_metrics()
