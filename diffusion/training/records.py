"""Losses and gradient norms on their way from the device to whoever looks at them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from diffusion.utils.errors import UserError


class TrainingDiverged(UserError):
    """A loss or a gradient is not a finite number."""


@dataclass(frozen=True)
class Record:
    """One update of the weights, as this process saw it.

    losses: of its batches, the mean, on the device: "loss" is the sum of the others.
    norm: () of the gradients of all processes together, on the device.
    sources: of its clips.
    """

    step: int
    losses: Mapping[str, Tensor]
    norm: Tensor
    sources: list[str]


class Records:
    """The updates since somebody last looked.

    To look, a process waits until its device has done all that it was given, and what it is given
    next comes late. So numbers stay where they were computed until they are shown, or until
    something is kept that must not come from numbers that are not finite.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self._waiting: list[Record] = []

    def add(self, record: Record) -> None:
        self._waiting.append(record)

    def look(self) -> list[dict[str, float]]:
        """Each update's losses, means over all processes, and norm. All processes must call this.

        The first that is not finite ends all processes, with the same words.
        """
        records, self._waiting = self._waiting, []
        if not records:
            return []
        losses = torch.stack([torch.stack(list(record.losses.values())) for record in records])
        losses = self.accelerator.reduce(losses) / self.accelerator.num_processes  # (N, terms)
        norms = torch.stack([record.norm for record in records])
        rows = torch.cat([losses, norms[:, None]], dim=1).tolist()  # the one time of waiting
        return [self._checked(record, row) for record, row in zip(records, rows, strict=True)]

    def _checked(self, record: Record, row: Sequence[float]) -> dict[str, float]:
        *values, norm = row
        scalars = dict(zip(record.losses, values, strict=True))
        if not all(map(math.isfinite, values)):
            mine = not all(value.isfinite() for value in record.losses.values())
            self._diverged("loss", scalars["loss"], record, mine)
        if math.isfinite(norm):
            scalars["grad_norm"] = norm
        elif self.accelerator.scaler is None:
            self._diverged("gradient norm", norm, record)
        # else too large for fp16: the scaler skipped this update and lowered its scale
        return scalars

    def _diverged(self, what: str, value: float, record: Record, mine: bool = True) -> None:
        """mine: whether clips of this process are to be named."""
        clips = gather_object(record.sources if mine else [])
        raise TrainingDiverged(f"{what} {value} at step {record.step}; clips: {', '.join(clips)}")
