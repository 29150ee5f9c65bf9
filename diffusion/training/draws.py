"""Random numbers of a training step, clip by clip."""

from collections.abc import Sequence

import torch
from torch import Tensor

from diffusion.data.training.batch import seeded
from diffusion.utils.devices import sent

NOISE = 1  # first word of the seeds, so that data drawn with the same others is unrelated
SHARED = 2**32  # in place of a clip's index: draws that concern the whole batch


class Draws:
    """What a step draws for clips `first`, `first + 1`, ... of the batch of all processes.

    A clip's numbers are a function of (seed, step, its index): a resumed run draws the same, and
    two processes draw together what one process with their total batch draws. They are drawn on the
    CPU, so that they do not depend on the device either.
    """

    def __init__(
        self, *, seed: int, step: int, first: int, count: int, device: str | torch.device = "cpu"
    ):
        self.device = torch.device(device)
        self._clips = [_generator(seed, step, i) for i in range(first, first + count)]
        self._shared = _generator(seed, step, SHARED)

    def normal(self, like: Tensor) -> Tensor:
        """Unit Gaussian noise for the (B, ...) clips, or for (B * F, ...) frames, in float32."""
        shape = (len(like) // len(self._clips), *like.shape[1:])
        noise = [torch.randn(shape, generator=g) for g in self._clips]
        return sent(torch.cat(noise), self.device)

    def uniform(self) -> Tensor:
        """(B,) in [0, 1)."""
        return sent(self._uniform(), self.device)

    def seed(self) -> int:
        """For whoever draws by itself: another one in every process."""
        return int(2**31 * self._uniform()[0])

    def _uniform(self) -> Tensor:
        """(B,) in [0, 1), on the CPU."""
        return torch.cat([torch.rand(1, generator=g) for g in self._clips])

    def shared_uniform(self) -> float:
        """In [0, 1), the same for all clips and processes."""
        return torch.rand((), generator=self._shared).item()

    def shared_integers(self, highest: Sequence[int]) -> tuple[int, ...]:
        """One in 0..h for each h of `highest`, the same for all clips and processes."""
        return tuple(int(self.shared_uniform() * (h + 1)) for h in highest)

    def window(self, total: int, length: int) -> slice:
        """`length` of `total` positions one after the other, or all of fewer."""
        (first,) = self.shared_integers([max(0, total - length)])
        return slice(first, first + length)


def _generator(*words: int) -> torch.Generator:
    return torch.Generator().manual_seed(int(seeded(NOISE, *words).integers(2**62)))
