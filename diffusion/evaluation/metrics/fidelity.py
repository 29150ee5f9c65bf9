"""How close pixels are: PSNR, and structural similarity at one scale and at five.

Sums of many float32 values are taken in two steps, rows in float32 and the rest in double: exact to
1e-7, and double arithmetic of every pixel is slow on GPUs.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as nnf
from torch import Tensor

from diffusion.evaluation.metrics.blur import gaussian_blur
from diffusion.evaluation.metrics.metric import Metric

RGB = "RGB in [0, 1] as decoded, not rounded to 8 bits"
PEAK = 2.0  # of values in [-1, 1]
RADIUS = 5  # pixels: a window of 11
SIGMA = 1.5
C1, C2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the five scales, finest first
# What one map of a band holds: on a CPU, the maps stay in its cache.
CPU_VALUES, GPU_VALUES = 2**18, 2**24


def psnr(video: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB: two (3, F, H, W) in [-1, 1] -> (F,)."""
    frames = zip(video.unbind(1), reference.unbind(1), strict=True)
    means = [sum_of((a.float() - b.float()).square_()) / a.numel() for a, b in frames]
    return 10 * torch.log10(PEAK**2 / torch.stack(means).clamp_min(1e-12))


def ssim(video: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004): two (3, F, H, W) in [-1, 1] -> (F,).

    Of RGB values in [0, 1], as it depends on where black lies. Gaussian window of 11 with sigma
    1.5, edges continued by reflection, mean over channels and positions.
    """
    return torch.stack([continued_similarity(*frames) for frames in frame_pairs(video, reference)])


def ms_ssim(video: Tensor, reference: Tensor) -> Tensor:
    """Multi-scale structural similarity (Wang et al. 2003): two (3, F, H, W) in [-1, 1] -> (F,).

    The paper's five scales and exponents; otherwise as `ssim`, but that contrast is taken 5 pixels
    from the edges.
    """
    return torch.stack([multi_scale(*frames) for frames in frame_pairs(video, reference)])


def multi_scale(a: Tensor, b: Tensor) -> Tensor:
    """Two (3, H, W) in [-1, 1] -> ()."""
    product = 1.0
    for exponent in EXPONENTS[:-1]:
        _, contrast = similarity(a, b)
        product = product * contrast.clamp_min(0) ** exponent
        a, b = nnf.avg_pool2d(a, 2), nnf.avg_pool2d(b, 2)
    return product * continued_similarity(a, b).clamp_min(0) ** EXPONENTS[-1]


def continued_similarity(a: Tensor, b: Tensor) -> Tensor:
    """Two (3, H, W) in [-1, 1] -> (): of a window around every pixel."""
    return similarity(*(nnf.pad(x, (RADIUS,) * 4, mode="reflect") for x in (a, b)))[0]


def similarity(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two (3, H, W) in [-1, 1] -> SSIM and its contrast part, means over the windows that fit."""
    sums = torch.stack([torch.stack(list(map(sum_of, maps(*band)))) for band in bands(a, b)])
    count = len(a) * (a.shape[1] - 2 * RADIUS) * (a.shape[2] - 2 * RADIUS)
    return tuple((sums.sum(0) / count).unbind())


def maps(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two (3, H + 10, W + 10) in [-1, 1] -> similarity and its contrast part, (3, H, W).

    Of c = 2 cov + C2 / (var + var' + C2) and l = 2 m m' + C1 / (m^2 + m'^2 + C1), where means m are
    of x + 1, so that black is 0; variances are the same for x, and keep more digits.
    """
    mean_a, mean_b, squares, product = (
        gaussian_blur(x, SIGMA, RADIUS) for x in (a, b, (a * a).addcmul_(b, b), a * b)
    )
    shared = mean_a * mean_b
    power = (mean_a * mean_a).addcmul_(mean_b, mean_b)
    variances = squares.sub_(power).clamp_min_(0).add_(C2)
    contrast = product.sub_(shared).mul_(2).add_(C2).div_(variances)
    more = mean_a.add_(mean_b).add_(1)  # (m + 1) (m' + 1) = m m' + more
    luminance = shared.add_(more).mul_(2).add_(C1)
    luminance.div_(power.add_(more, alpha=2).add_(C1))
    return luminance.mul_(contrast), contrast


def bands(a: Tensor, b: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Two (3, H, W) -> rows of them, in which each window of 11 rows lies once."""
    values = CPU_VALUES if a.device.type == "cpu" else GPU_VALUES
    rows = max(1, values // (len(a) * a.shape[2]))
    last = a.shape[1] - 2 * RADIUS
    for start in range(0, last, rows):
        stop = min(start + rows, last) + 2 * RADIUS
        yield a[:, start:stop], b[:, start:stop]


def frame_pairs(video: Tensor, reference: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(video.float().unbind(1), reference.float().unbind(1), strict=True)


def sum_of(x: Tensor) -> Tensor:
    """(3, H, W) -> (), double."""
    return x.sum(-1).double().sum()


PSNR = Metric(
    name="psnr",
    label="PSNR",
    higher_is_better=True,
    definition=f"dB, peak 1, mean squared error over {RGB}",
    compute=psnr,
)
SSIM = Metric(
    name="ssim",
    label="SSIM",
    higher_is_better=True,
    definition=f"Wang et al. 2004; {RGB}, mean over channels; Gaussian window 11x11, sigma 1.5, "
    "K 0.01 and 0.03, edges reflected, whole frame",
    compute=ssim,
    least_side=RADIUS + 1,
)
MS_SSIM = Metric(
    name="ms_ssim",
    label="MS-SSIM",
    higher_is_better=True,
    definition="Wang et al. 2003; five scales; data and window as SSIM, contrast 5 px from the "
    "edges",
    compute=ms_ssim,
    least_side=(2 * RADIUS + 1) * 2 ** (len(EXPONENTS) - 1),
)
