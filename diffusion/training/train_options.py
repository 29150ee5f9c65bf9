"""What `train` of a config holds beside its stage."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from diffusion.registry import call_with, read_value
from diffusion.training.learning_rate import LearningRate
from diffusion.training.optimizers import DEFAULT_OPTIMIZER, check_optimizer
from diffusion.training.processes import Sharding
from diffusion.utils.compute import Compute
from diffusion.utils.errors import ConfigError
from diffusion.utils.ranges import check_least, check_positive


@dataclass(frozen=True)
class Loop:
    """How long a training goes on, what an update is made of, and how often it is shown.

    max_steps: updates of the weights; each takes `gradient_accumulation` batches of every process.
    gradient_clip: the largest norm of all gradients together.
    ema_decay: of the moving average of the weights, which is what a training leaves.
    log_interval: steps whose means are one record.
    num_workers: processes that load data, for each process that trains.
    seed: of all that steps draw; the data have their own.
    """

    max_steps: int
    gradient_accumulation: int = 1
    gradient_clip: float = 1.0
    ema_decay: float = 0.999
    log_interval: int = 20
    num_workers: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        check_least(self, max_steps=0, gradient_accumulation=1, log_interval=1, num_workers=0)
        check_least(self, seed=0)
        check_positive(self, "gradient_clip")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"ema_decay is {self.ema_decay}, but must be at least 0 and below 1")


@dataclass(frozen=True)
class Saving:
    """Which checkpoints there are.

    interval: steps from one to the next; the last step has one in any case.
    keep_last: how many of the newest are kept. keep_every: those of its multiples are kept too.
    """

    interval: int = 200
    keep_last: int = 2
    keep_every: int | None = None

    def __post_init__(self) -> None:
        check_least(self, interval=1, keep_last=1, keep_every=1)

    def due(self, step: int) -> bool:
        return step % self.interval == 0

    def dropped(self, steps: list[int]) -> list[int]:
        """Which of the steps that have a checkpoint, the newest first, keep none."""
        old = steps[self.keep_last :]
        return [step for step in old if not (self.keep_every and step % self.keep_every == 0)]


@dataclass(frozen=True)
class TrainOptions:
    """How a stage is trained, whatever it is.

    optimizer: its type and options.
    fsdp: None for whole networks in every process.
    compute: see Compute; a continued run may change it.
    """

    loop: Loop
    learning_rate: LearningRate
    optimizer: Mapping[str, Any] = field(default_factory=lambda: dict(DEFAULT_OPTIMIZER))
    saving: Saving = field(default_factory=Saving)
    fsdp: Sharding | None = None
    compute: Compute = field(default_factory=Compute)


def read_train_options(train: Mapping[str, Any]) -> TrainOptions:
    """From `train` of a config; its stage is for others to read."""
    train = dict(read_value(train, Mapping[str, Any], "train"))
    train.pop("stage", None)
    options = call_with(TrainOptions, train, "train")
    check_optimizer(options.optimizer)
    return options
