"""The learning rate of a training, update by update."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from diffusion.registry import nearest
from diffusion.utils.errors import ConfigError
from diffusion.utils.ranges import check_least, check_positive


def constant(step: int, num_steps: int) -> float:
    """The published schedule."""
    return 1.0


def cosine(step: int, num_steps: int, final: float = 0.02) -> float:
    """Half a cosine from 1 down to `final`."""
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, num_steps))))


SCHEDULES: dict[str, Callable[[int, int], float]] = {"constant": constant, "cosine": cosine}

SCALING_RULES: dict[str, Callable[[float], float]] = {"sqrt": math.sqrt, "linear": float}


@dataclass(frozen=True)
class BatchScaling:
    """Makes of a learning rate for `base_batch` clips per update one for the clips there are.

    rule: "sqrt" for optimizers that normalise gradients (Krizhevsky, 2014, section 5), "linear"
        for SGD (Goyal et al., 2017).
    """

    rule: str = "sqrt"
    base_batch: int = 256

    def __post_init__(self) -> None:
        if self.rule not in SCALING_RULES:
            raise ConfigError(f"rule is {self.rule!r}; {nearest(self.rule, SCALING_RULES)}")
        check_least(self, base_batch=1)

    def __call__(self, lr: float, total_batch: int) -> float:
        return lr * SCALING_RULES[self.rule](total_batch / self.base_batch)


@dataclass(frozen=True)
class LearningRate:
    """Linear warm-up over `warmup_steps` updates to `peak`, then a schedule.

    In the published training the first update had a learning rate of 0, and n processes warmed up
    in 1/n of the steps, as accelerate moves a schedule once per process. Here the first update
    counts, and a schedule is a function of the number of updates alone.

    schedule: "constant", or "cosine", down to a fiftieth of the peak.
    schedule_steps: updates after which it is down, warm-up included; None: the training's length.
    auto: makes of `peak`, for a batch of some size, that for this training's; None: nothing.
    """

    peak: float
    schedule: str = "cosine"
    schedule_steps: int | None = None
    warmup_steps: int = 100
    auto: BatchScaling | None = None

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ConfigError(f"schedule is {self.schedule!r}; {nearest(self.schedule, SCHEDULES)}")
        check_positive(self, "peak")
        check_least(self, warmup_steps=0, schedule_steps=1)

    def for_batch(self, total_batch: int) -> "LearningRate":
        """With the peak for `total_batch` clips per update, over all processes."""
        if self.auto is None:
            return self
        return replace(self, peak=self.auto(self.peak, total_batch), auto=None)

    def at(self, step: int, max_steps: int) -> float:
        """Of the update that follows `step` others, of a training of `max_steps`."""
        return self.peak * self.factor(step, self.schedule_steps or max_steps)

    def factor(self, step: int, num_steps: int) -> float:
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        schedule = SCHEDULES[self.schedule]
        return schedule(step - self.warmup_steps, num_steps - self.warmup_steps)
