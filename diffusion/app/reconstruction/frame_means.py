"""Means over the frames of a clip, measured where the frames are."""

import torch
from torch import Tensor

from diffusion.app.reconstruction.stage_times import Stages
from diffusion.evaluation.metrics.fidelity import psnr, ssim
from diffusion.utils.devices import sent

MEASURES = {"psnr": psnr, "ssim": ssim}


class FrameMeans:
    """PSNR and SSIM, of values on [0, 255] colours that are not rounded.

    Sums stay on the device of the frames until they are asked for.
    """

    def __init__(self, stages: Stages):
        self.stages = stages
        self._sums: dict[str, Tensor] = {}

    def add(self, prefix: str, video: Tensor, original: Tensor) -> None:
        """Two (3, f, H, W) in [-1, 1]; the means get `prefix` before the measure's name."""
        with self.stages("measure"), torch.no_grad():
            original = sent(original, video.device)
            for name, measure in MEASURES.items():
                total = measure(video, original).double().sum()
                before = self._sums.get(prefix + name)
                self._sums[prefix + name] = total if before is None else before + total

    def over(self, num_frames: int) -> dict[str, float]:
        with self.stages("measure"):
            return {name: total.item() / num_frames for name, total in self._sums.items()}
