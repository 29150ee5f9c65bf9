"""How a model is sampled: which sampler, in how many steps."""

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from diffusion.noise.gaussian import GaussianDiffusion
from diffusion.noise.samplers import (
    Scheduler,
    build_sampler,
    check_name,
    check_sampler,
    set_steps,
    suited_sampler,
)
from diffusion.utils.errors import ConfigError

Spacing = Literal["even", "angle"]


@dataclass(frozen=True)
class Sampling:
    """sampler, steps: see build_sampler. Without a sampler it is the one that suits the model.

    euler_a_spacing, published: likewise.
    """

    sampler: str | None = None
    steps: int = 8
    euler_a_spacing: Spacing = "even"
    published: bool = False

    def __post_init__(self):
        if self.sampler is not None:
            check_name(self.sampler)
        if self.steps < 1:
            raise ConfigError(f"steps={self.steps} must be at least 1")
        if self.euler_a_spacing not in get_args(Spacing):
            raise ConfigError(f"euler_a_spacing {self.euler_a_spacing!r} is not 'even' or 'angle'")

    def changed(self, sampler: str | None = None, steps: int | None = None) -> "Sampling":
        """With another sampler or number of steps, where they are given."""
        given = {"sampler": sampler, "steps": steps}
        return replace(self, **{name: value for name, value in given.items() if value is not None})

    def of(self, noise: GaussianDiffusion) -> "Sampling":
        """With a sampler that can follow this process; ConfigError if the given one cannot."""
        name = self.sampler or suited_sampler(noise.prediction_type)
        check_sampler(name, self.steps, noise.prediction_type, noise.num_train_timesteps)
        return replace(self, sampler=name)

    def scheduler(self, noise: GaussianDiffusion) -> Scheduler:
        """What samples this process."""
        return build_sampler(
            self.sampler or suited_sampler(noise.prediction_type),
            num_inference_steps=self.steps,
            prediction_type=noise.prediction_type,
            num_train_timesteps=noise.num_train_timesteps,
            beta_schedule=noise.beta_schedule,
            euler_a_spacing=self.euler_a_spacing,
            published=self.published,
        )


@dataclass(frozen=True)
class OwnScheduler:
    """In place of a Sampling: a scheduler of diffusers that somebody brought, as it is."""

    own: Any

    @classmethod
    def of(
        cls, scheduler: Any, steps: int, euler_a_spacing: str, published: bool
    ) -> "OwnScheduler":
        """A copy of it, with its timesteps set."""
        own = deepcopy(scheduler)
        trained = own.config.get("num_train_timesteps", steps)
        if not 1 <= steps <= trained:
            raise ConfigError(f"{steps} sampling steps asked for; use 1 to {trained}")
        set_steps(own, steps, euler_a_spacing, published)
        return cls(own)

    @property
    def steps(self) -> int:
        """Calls of the network: some schedulers make two for a step."""
        return len(self.own.timesteps)

    def scheduler(self, noise: GaussianDiffusion) -> Any:
        return self.own
