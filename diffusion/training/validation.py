"""Validation while training: what the averaged networks make of fixed clips."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from torch import Tensor, nn

from diffusion.data.transforms import (
    SIDE_MULTIPLE,
    crop_to_multiple,
    resize_short_edge,
    side_by_side,
    to_float,
    to_uint8,
)
from diffusion.data.video.clip import Clip
from diffusion.data.video.open_video import open_video
from diffusion.data.video_list import list_videos
from diffusion.evaluation.metrics.fidelity import psnr, ssim
from diffusion.training.monitor import Monitor
from diffusion.training.stages.stage import Stage
from diffusion.utils.devices import sent
from diffusion.utils.errors import UserError, VideoError
from diffusion.utils.labels import comparison_picture, with_labels
from diffusion.utils.progress import track
from diffusion.utils.ranges import Count, Range

log = logging.getLogger(__name__)


class Validation:
    """Reconstructs the same clips every `interval` steps, for the eye and as PSNR and SSIM.

    video_list: entries as those of the training list; every one of the first `num_clips` videos
        must be readable. Without it, the first of `training_list` that can be read serve.
    num_frames: from the start of each video; a shorter one gives what it has.
    size: short edge in pixels; the sides are cut to multiples of 32.
    """

    def __init__(
        self,
        *,
        interval: Count,
        video_list: Sequence[str] | str | None = None,
        training_list: Sequence[str] | str = (),
        num_clips: Count = 4,
        num_frames: Count = 8,
        size: Annotated[int, Range(SIDE_MULTIPLE)] = 256,
    ):
        for name, value, least in (
            ("interval", interval, 1),
            ("num_clips", num_clips, 1),
            ("num_frames", num_frames, 1),
            ("size", size, SIDE_MULTIPLE),
        ):
            if value < least:
                raise ValueError(f"{name} is {value}, but must be at least {least}")
        self.interval = interval
        from_training = video_list is None
        if from_training:
            log.info("validation: no video_list of its own, so the training's first are taken")
        paths = list_videos(training_list if from_training else video_list)
        found = read_clips(paths, num_frames, size, leave_out=from_training)
        self.clips: dict[str, Clip] = {}
        for i, (path, clip) in enumerate(islice(found, num_clips)):
            self.clips[f"clip_{i}"] = clip
            _, frames, height, width = clip.video.shape
            log.info("validation clip_%d: %d frames of %dx%d, %s", i, frames, width, height, path)
        if not self.clips:
            raise UserError("validation: none of the videos of video_list can be read")

    def due(self, step: int) -> bool:
        return step % self.interval == 0

    @torch.no_grad()
    def run(
        self, stage: Stage, parts: Mapping[str, nn.Module], step: int, monitor: Monitor
    ) -> dict[str, float]:
        """Validate `parts`, tell the monitor, and return the means over frames, then clips."""
        scores: list[tuple[float, float]] = []
        for name, clip in track(list(self.clips.items())):
            original = sent(clip.video, device_of(parts))
            result = reconstruct(stage, parts, original)
            scores.append(quality(result, original))
            names = ["original", f"step {step}: {scores[-1][0]:.2f} dB"]
            columns = to_uint8(side_by_side([original, result]).cpu())
            picture = np.array(comparison_picture(columns[len(columns) // 2], names))
            monitor.pictures(step, {name: to_float(picture[None])[:, 0]})
            monitor.videos(step, {name: (to_float(with_labels(columns, names)), clip.fps)})
        means = torch.tensor(scores).mean(0).tolist()
        scalars = dict(zip(("validation/psnr", "validation/ssim"), means, strict=True))
        monitor.scalars(step, scalars)
        return scalars


def read_clip(path: Path, num_frames: int, size: int) -> Clip:
    """The first frames of a video, or a still picture, with sides that are multiples of 32."""
    with open_video(path) as reader:
        frames = islice(reader.frames(), num_frames)
        # one by one: large frames are not held
        resized = [resize_short_edge(to_float(frame[None]), size) for frame in frames]
        fps = reader.info.fps
    return Clip(crop_to_multiple(torch.cat(resized, dim=1), SIDE_MULTIPLE), fps)


def read_clips(
    paths: Iterable[Path], num_frames: int, size: int, *, leave_out: bool
) -> Iterator[tuple[Path, Clip]]:
    """Every video with its clip. One that cannot be read ends the run, or is left out silently:
    of the training list, what is bad is named by those who train on it.
    """
    for path in paths:
        try:
            yield path, read_clip(path, num_frames, size)
        except VideoError as error:
            if not leave_out:
                raise UserError(f"validation: {error}; put another into its video_list") from error


def reconstruct(stage: Stage, parts: Mapping[str, nn.Module], video: Tensor) -> Tensor:
    """(3, F, H, W) -> the same of what `parts` make of it, in [-1, 1]."""
    with evaluating(parts):
        result = stage.reconstruct(parts, video[None])
    assert result.shape == (1, *video.shape)
    return result[0].float().clamp(-1, 1)


def device_of(parts: Mapping[str, nn.Module]) -> torch.device:
    return next(p.device for part in parts.values() for p in part.parameters())


@contextmanager
def evaluating(parts: Mapping[str, nn.Module]) -> Iterator[None]:
    """Within the block all modules are as for inference; after it, as they were."""
    modes = {module: module.training for part in parts.values() for module in part.modules()}
    for module in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def quality(video: Tensor, reference: Tensor) -> tuple[float, float]:
    """PSNR and SSIM, means over frames, where these are."""
    with torch.autocast(video.device.type, enabled=False):  # also where training runs in bf16
        return psnr(video, reference).mean().item(), ssim(video, reference).mean().item()
