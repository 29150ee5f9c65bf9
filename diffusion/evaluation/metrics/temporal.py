"""How a reconstruction moves, against how the original moves: pairs of neighbouring frames."""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as nnf
from torch import Tensor

from diffusion.evaluation.metrics.blur import gaussian_blur
from diffusion.evaluation.metrics.metric import Metric

STILL = 0.1 / 127.5  # a tenth of an 8-bit level: keeps ratios finite where nothing moves
FLOW_SHORT_EDGE = 256  # pixels; finer motion than this resolves is noise
FLOW_COARSEST = 16  # pixels: short edge at the top of the pyramid
FLOW_ITERATIONS = 6  # per level
FLOW_SIGMA = 3.0  # pixels: the window in which motion is taken to be constant


def flicker(video: Tensor, reference: Tensor) -> Tensor:
    """Change from frame to frame, relative to the original's: two (3, F, H, W) -> (F-1,).

    1 is right; more is flicker, less is motion that was lost.
    """
    own, wanted = (mean_changes(x.float().unbind(1)) for x in (video, reference))
    return (own + STILL) / (wanted + STILL)


def vbench_flickering(video: Tensor, reference: Tensor) -> Tensor:
    """VBench's temporal flickering (Huang et al. 2024, arXiv:2311.17982): (3, F, H, W) -> (F-1,).

    1 - mean |frame difference| / 255 of the 8-bit reconstruction; the original plays no part, so
    that a still picture is best.
    """
    levels = ((127.5 * x.float() + 127.5).clamp(0, 255).round() for x in video.unbind(1))
    return 1 - mean_changes(levels) / 255


def mean_changes(frames: Iterable[Tensor]) -> Tensor:
    """F frames of one shape -> (F-1,): mean |difference| of neighbours."""
    return torch.stack([(after - before).abs().mean() for before, after in pairwise(frames)])


def warped_error(video: Tensor, reference: Tensor) -> Tensor:
    """How far the error fails to move with the content, in 8-bit levels: -> (F-1,).

    Lai et al. 2018 (arXiv:1808.00449, eq. 10) compare a frame with the next one warped back onto it
    along the original's motion, where nothing is occluded. That alone prefers blur, and counts
    the flow's errors; here the original's own residual is taken off before the mean of absolute
    values, so that a perfect reconstruction has 0.
    """
    means = []
    for now, then in pairwise(zip(video.unbind(1), reference.unbind(1), strict=True)):
        (own, wanted), (next_own, next_wanted) = ((x[None].float() for x in p) for p in (now, then))
        motion, visible = flow_and_visibility(wanted, next_wanted)
        change = own - wanted - warp(next_own - next_wanted, motion)
        means.append(127.5 * (change.abs().mean(1, keepdim=True) * visible).sum() / visible.sum())
    return torch.stack(means)


def flow_and_visibility(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """Two (N, 3, H, W) -> motion (N, 2, H, W) in pixels, and the weight (N, 1, H, W) of each pixel.

    `after` at x + motion(x) shows what `before` shows at x. The weight is 0 where the motion back
    does not undo it (Sundaram et al. 2010, eq. 5), or where it leaves the frame; 1 elsewhere. A
    pair without any motion that can be followed, such as a cut, has 1 everywhere.
    """
    height, width = before.shape[-2:]
    scale = min(1.0, FLOW_SHORT_EDGE / min(height, width))
    size = (max(2, round(height * scale)), max(2, round(width * scale)))
    grey = [
        nnf.interpolate(x.mean(1, keepdim=True), size, mode="bilinear", antialias=True)
        for x in (before, after)
    ]
    both = torch.cat(grey), torch.cat(grey[::-1])
    forth, back = optical_flow(*both).chunk(2)
    returned = warp(back, forth)
    gap = (forth + returned).square().sum(1, keepdim=True)
    length = forth.square().sum(1, keepdim=True) + returned.square().sum(1, keepdim=True)
    x, y = target_positions(forth).unbind(-1)
    inside = (x.abs() <= 1) & (y.abs() <= 1)
    visible = ((gap < 0.01 * length + 0.5) & inside[:, None]).float()
    visible = torch.where(visible.any(dim=(2, 3), keepdim=True), visible, 1.0)
    visible = nnf.interpolate(visible, (height, width), mode="nearest")
    return resized_motion(forth, (height, width)), visible


def optical_flow(before: Tensor, after: Tensor) -> Tensor:
    """Two grey (N, 1, H, W) -> motion (N, 2, H, W): (right, down) in pixels.

    Lucas & Kanade 1981 at every pixel, from coarse to fine (Bouguet 2001): in a Gaussian window
    the linearised brightness change is explained by one displacement, in the sense of least
    squares.
    """
    pyramid = [(before, after)]
    while min(pyramid[-1][0].shape[-2:]) >= 2 * FLOW_COARSEST:
        pyramid.append(tuple(nnf.avg_pool2d(smooth(x, 1.0), 2) for x in pyramid[-1]))
    motion = before.new_zeros(len(before), 2, *pyramid[-1][0].shape[-2:])
    for a, b in reversed(pyramid):
        if motion.shape[-2:] != a.shape[-2:]:
            motion = resized_motion(motion, a.shape[-2:])
        for _ in range(FLOW_ITERATIONS):
            motion = smooth(motion + displacement(a, warp(b, motion)), 1.0)
    return motion


def resized_motion(motion: Tensor, size: Sequence[int]) -> Tensor:
    """(N, 2, H, W) in pixels -> the same motion in a frame of another size, (N, 2, *size)."""
    ratios = (size[1] / motion.shape[-1], size[0] / motion.shape[-2])
    motion = nnf.interpolate(motion, size, mode="bilinear", align_corners=False)
    # Numbers, not tensors: a GPU need not wait for them.
    return torch.stack([motion[:, axis] * ratio for axis, ratio in enumerate(ratios)], dim=1)


def displacement(a: Tensor, b: Tensor) -> Tensor:
    """Two grey (N, 1, H, W), nearly equal -> (N, 2, H, W) of at most a pixel."""
    mean = nnf.pad((a + b) / 2, (1, 1, 1, 1), mode="replicate")
    dx = (mean[..., 1:-1, 2:] - mean[..., 1:-1, :-2]) / 2
    dy = (mean[..., 2:, 1:-1] - mean[..., :-2, 1:-1]) / 2
    products = torch.cat([dx * dx, dy * dy, dx * dy, dx * (a - b), dy * (a - b)], dim=1)
    xx, yy, xy, xt, yt = smooth(products, FLOW_SIGMA).split(1, dim=1)
    damping = (2 / 255) ** 2  # of gradients below a level: where nothing is seen, nothing moves
    xx, yy = xx + damping, yy + damping
    determinant = xx * yy - xy * xy
    found = torch.cat([yy * xt - xy * yt, xx * yt - xy * xt], dim=1) / determinant
    return found.clamp(-1, 1)


def target_positions(motion: Tensor) -> Tensor:
    """(N, 2, H, W) in pixels -> (N, H, W, 2): where each pixel goes, the frame being [-1, 1]."""
    height, width = motion.shape[-2:]
    y = torch.arange(height, device=motion.device) + 0.5
    x = torch.arange(width, device=motion.device) + 0.5
    moved = ((motion[:, 0] + x) * 2 / width - 1, (motion[:, 1] + y[:, None]) * 2 / height - 1)
    return torch.stack(moved, dim=-1)


def warp(frames: Tensor, motion: Tensor) -> Tensor:
    """(N, C, H, W) as seen at x + motion(x), between pixels bilinearly."""
    return nnf.grid_sample(
        frames, target_positions(motion), padding_mode="border", align_corners=False
    )


def smooth(x: Tensor, sigma: float) -> Tensor:
    """(N, C, H, W) -> the same under a Gaussian window; edges are continued."""
    radius = round(2.5 * sigma)
    return gaussian_blur(nnf.pad(x, (radius,) * 4, mode="replicate"), sigma, radius)


FLICKER = Metric(
    name="flicker",
    label="Flicker",
    higher_is_better=None,
    definition="mean |difference of neighbouring frames| / the original's; 1 is right",
    compute=flicker,
    least_frames=2,
)
WARPED_ERROR = Metric(
    name="warped_error",
    label="Warped error",
    higher_is_better=False,
    definition="mean change of the error along the original's motion (Lucas-Kanade at short edge "
    "256, occlusions left out), in 8-bit levels",
    compute=warped_error,
    least_frames=2,
    least_side=16,
)
VBENCH_FLICKERING = Metric(
    name="vb_flickering",
    label="Flickering (VBench's)",
    higher_is_better=True,
    definition="1 - mean |difference of neighbouring frames| / 255 of the 8-bit reconstruction",
    compute=vbench_flickering,
    least_frames=2,
)
