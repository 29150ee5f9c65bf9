"""What a stage of training is: the networks it trains, and the loss of one batch."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from diffusion.data.training.batch import Batch, LatentBatch
from diffusion.training.draws import Draws

Batches = Callable[[int], Any]
"""step -> Batch or LatentBatch, a function of nothing else."""


class Stage(nn.Module):
    """parts: the trained networks, by the name under which `weights` of the config has them.

    Other modules of a stage, such as a loss, follow it to a device and stay as they are.

    more_networks: those of the config that it needs trained, where it needs the autoencoders.
    """

    more_networks: ClassVar[tuple[str, ...]] = ()

    def __init__(self, **parts: nn.Module):
        super().__init__()
        self.parts = nn.ModuleDict(parts)

    def prepare(self, batches: Batches) -> None:
        """Called once before the first step of a run from scratch."""

    def loss(self, batch: Batch | LatentBatch, draws: Draws) -> dict[str, Tensor]:
        """Terms of the loss, already weighted: their sum is minimised."""
        raise NotImplementedError

    def reconstruct(self, parts: Mapping[str, nn.Module], video: Tensor) -> Tensor:
        """What networks like `self.parts`, such as their averages, make of a video.

        (B, 3, F, H, W) in [-1, 1] -> the same shape, on the same device, without gradients. The
        same video gives the same result: what is drawn at random is drawn from a fixed seed.
        """
        raise NotImplementedError
