"""Samplers by name, as diffusers schedulers, and what they step: x_t on its way to data."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias, TypedDict

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_ancestral_discrete import (
    EulerAncestralDiscreteScheduler,
)
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from torch import Tensor
from torch.overrides import TorchFunctionMode

from diffusion.noise.gaussian import linear_range
from diffusion.registry import nearest
from diffusion.utils.devices import sent
from diffusion.utils.errors import ConfigError, UserError

Generators = torch.Generator | list[torch.Generator]
Scheduler: TypeAlias = (
    DDIMScheduler
    | DPMSolverMultistepScheduler
    | EulerAncestralDiscreteScheduler
    | EulerDiscreteScheduler
    | FlowMatchEulerDiscreteScheduler
)


class Process(TypedDict):
    """What diffusers' schedulers are told of the noise process."""

    prediction_type: str
    num_train_timesteps: int
    beta_schedule: str
    beta_start: float  # these two of the linear schedule
    beta_end: float


PUBLISHED_DPM_END: Final = 0.001
"""Time, of which 1 is pure noise, at which the published DPM-Solver++ stops."""


def build_sampler(
    name: str,
    *,
    num_inference_steps: int,
    prediction_type: str = "epsilon",
    num_train_timesteps: int = 1000,
    beta_schedule: str = "linear",
    euler_a_spacing: str = "even",
    published: bool = False,
) -> Scheduler:
    """A scheduler of the given noise schedule, with its timesteps set.

    name: "euler_a", "ddim", "dpmpp" (DPM-Solver++ 2M) or "euler". A flow ("flow_prediction") takes
        "euler" or "dpmpp".
    euler_a_spacing: "even" in timesteps, or "angle": even in arctan(sigma / alpha), as a cosine
        schedule would be (IDDPM (17)). With linear betas and data of unit variance, half of the
        even steps go by before anything but noise can be seen.
    published: bring back what the published implementation did, defects included: DDIM starts below
        pure noise and clips its x0 to [-1, 1], DPM-Solver++ stops short of zero noise.
    """
    check_sampler(name, num_inference_steps, prediction_type, num_train_timesteps)
    if euler_a_spacing not in ("even", "angle"):
        raise ConfigError(f"euler_a_spacing {euler_a_spacing!r} is not 'even' or 'angle'")
    if prediction_type == "flow_prediction":
        sampler = _flow(name, num_train_timesteps)
        set_steps(sampler, num_inference_steps)
        return sampler
    first, last = linear_range(num_train_timesteps)
    process = Process(
        prediction_type=prediction_type,
        num_train_timesteps=num_train_timesteps,
        beta_schedule=beta_schedule,
        beta_start=first,
        beta_end=last,
    )
    sampler = SAMPLERS[name](published, process)
    set_steps(sampler, num_inference_steps, euler_a_spacing, published)
    return sampler


def set_steps(
    sampler: Any, steps: int, euler_a_spacing: str = "even", published: bool = False
) -> None:
    """Set the timesteps of a scheduler, whichever it is; see build_sampler."""
    if isinstance(sampler, FlowMatchEulerDiscreteScheduler):  # even steps of sigma from 1 to 0
        sampler.set_timesteps(sigmas=(np.arange(steps, 0, -1) / steps).tolist())
        return
    sampler.set_timesteps(steps)
    if isinstance(sampler, EulerAncestralDiscreteScheduler):
        # A step subtracts squares of sigmas. Cosine betas begin at a sigma of 20,000, where float32
        # can round the difference to below zero, whose root is not a number.
        sampler.sigmas = sampler.sigmas.double()
        if euler_a_spacing == "angle":
            _space_by_angle(sampler, steps)
    if published and isinstance(sampler, DPMSolverMultistepScheduler):
        _use_continuous_time(sampler, steps)


def suited_sampler(prediction_type: str) -> str:
    """The sampler for a model of which no other is said."""
    return {"flow_prediction": "euler", "sample": "ddim"}.get(prediction_type, "euler_a")


def check_name(name: str) -> None:
    if name not in SAMPLERS:
        raise ConfigError(f"unknown sampler {name!r}, {nearest(str(name).lower(), SAMPLERS)}")


def check_sampler(name: str, steps: int, prediction_type: str, num_train_timesteps: int) -> None:
    """Raise a ConfigError if the sampler is unknown, or cannot follow such a model."""
    check_name(name)
    if not 1 <= steps <= num_train_timesteps:
        raise ConfigError(f"{steps} sampling steps asked for; use 1 to {num_train_timesteps}")
    if prediction_type == "flow_prediction" and name not in FLOW_SAMPLERS:
        raise ConfigError(f"sampler {name!r} cannot follow a flow; use 'euler' or 'dpmpp'")
    if prediction_type == "sample" and name == "euler_a":
        raise ConfigError("sampler 'euler_a' cannot follow prediction_type 'sample'; use 'ddim'")


class Trajectory:
    """x_t on its way from noise to data, one sampler step after the other.

    Steps are the same for every value whatever its neighbours, so that a clip can be cut into
    trajectories that take their steps at different moments.
    """

    def __init__(
        self,
        sampler: Scheduler,
        noise: Tensor,
        generator: Generators | None = None,
    ):
        """noise: (N, ...) of unit variance. `sampler` is left as it was.

        generator: of the noise of stochastic samplers; a list has one for each of the N.
        """
        # schedulers count their steps and remember predictions
        self.sampler: Any = copy.deepcopy(sampler)  # of one interface, but in their annotations
        if hasattr(sampler, "set_begin_index"):  # those that count
            self.sampler.set_begin_index(0)  # or they look their first timestep up
        self.generator = generator
        self.x = noise.float()
        if not isinstance(sampler, FlowMatchEulerDiscreteScheduler):  # which starts from unit noise
            self.x = self.x * sampler.init_noise_sigma
        self.steps_done = 0

    @property
    def timestep(self) -> Tensor:
        """Of the next step: a number."""
        return self.sampler.timesteps[self.steps_done]

    def model_input(self) -> Tensor:
        """(N, ...): x_t as the network expects it."""
        if isinstance(self.sampler, FlowMatchEulerDiscreteScheduler):
            return self.x  # needs no scaling
        return self.sampler.scale_model_input(self.x, self.timestep)

    def replace(self, x: Tensor) -> None:
        """Go on from this x_t (N, ...)."""
        if x.shape != self.x.shape:
            raise UserError(f"x_t is {tuple(self.x.shape)}; {tuple(x.shape)} cannot take its place")
        self.x = x.to(self.x)

    def step(self, prediction: Tensor) -> None:
        """prediction: (N, ...), the network's answer to `model_input`."""
        with Drawing(self.generator):
            result = self.sampler.step(prediction.float(), self.timestep, self.x)
        self.x = result.prev_sample
        self.steps_done += 1


class Drawing(TorchFunctionMode):
    """Within the block, `torch.randn` is `draw_noise` with these generators, if there are any.

    Stochastic schedulers draw in their `step`; what generators of the CPU gave, they copy to a GPU
    frame by frame, and wait for each.
    """

    def __init__(self, generator: Generators | None):
        super().__init__()
        self.generator = generator

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.randn and self.generator is not None:
            return draw_noise(args[0], self.generator, torch.device(kwargs["device"]))
        return func(*args, **kwargs)


def draw_seed(generator: torch.Generator | None) -> int:
    """For `frame_generators`; without a generator always the same."""
    if generator is None:
        return 0
    return int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))


def draw_noise(size: Sequence[int], generator: Generators, device: torch.device) -> Tensor:
    """(N, ...) of unit variance, drawn on the CPU, so that a seed is the same on every device.

    generator: of all, or a list of one for each of the N.
    """
    noise = torch.empty(*size)
    if isinstance(generator, list):
        for part, own in zip(noise, generator, strict=True):
            torch.randn(part.shape, generator=own, out=part)
    else:
        torch.randn(noise.shape, generator=generator, out=noise)
    return sent(noise, device)


def frame_generators(
    seed: int, frames: range, batch: int = 1, first_video: int = 0
) -> list[torch.Generator]:
    """One for every frame of every video, in the order (b f).

    On the CPU (see `draw_noise`), and a function of nothing but the seed, the video and the frame's
    number, so that a clip need not be held to draw its noise.
    """
    generators = []
    for video in range(first_video, first_video + batch):
        for frame in frames:
            word = np.random.SeedSequence((seed, video, frame)).generate_state(1, np.uint64)[0]
            generators.append(torch.Generator().manual_seed(int(word)))
    return generators


def _euler_ancestral(published: bool, process: Process) -> Scheduler:
    return EulerAncestralDiscreteScheduler(**process)


def _euler(published: bool, process: Process) -> Scheduler:
    return EulerDiscreteScheduler(**process)


def _flow(name: str, num_train_timesteps: int) -> Scheduler:
    if name == "dpmpp":
        return DPMSolverMultistepScheduler(
            num_train_timesteps=num_train_timesteps,
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            euler_at_final=True,
        )
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=num_train_timesteps)


def _space_by_angle(sampler: EulerAncestralDiscreteScheduler, steps: int) -> None:
    """Replace the timesteps by fractional ones whose arctan(sigma / alpha) falls evenly to 0."""
    alphas_cumprod = sampler.alphas_cumprod.double().numpy()
    angles = np.arctan(np.sqrt((1 - alphas_cumprod) / alphas_cumprod))  # (T,), rising
    wanted = angles[-1] * np.arange(steps, 0, -1) / steps
    timesteps = np.interp(wanted, angles, np.arange(len(angles)))
    sampler.timesteps = torch.from_numpy(timesteps).float()
    sampler.sigmas = torch.from_numpy(np.append(np.tan(wanted), 0.0))


def _ddim(published: bool, process: Process) -> Scheduler:
    # "trailing" starts at the last timestep, whose x_t is the pure noise that sampling starts from;
    # "leading" starts earlier (Lin et al. 2023, section 3.3)
    spacing = "leading" if published else "trailing"
    return DDIMScheduler(**process, clip_sample=published, timestep_spacing=spacing)


def _dpm_solver(published: bool, process: Process) -> Scheduler:
    # first order at the end, whatever the number of steps
    return DPMSolverMultistepScheduler(**process, euler_at_final=True)


def _use_continuous_time(sampler: DPMSolverMultistepScheduler, steps: int) -> None:
    """Even steps in continuous time from 1 to PUBLISHED_DPM_END, in place of integer timesteps.

    log alpha is interpolated between the training steps, of which step i is at time (i + 1) / T.
    """
    num_train_timesteps = sampler.config["num_train_timesteps"]
    times = np.linspace(1, PUBLISHED_DPM_END, steps + 1)
    training_times = np.arange(1, num_train_timesteps + 1) / num_train_timesteps
    log_alpha = np.interp(times, training_times, sampler.alphas_cumprod.double().log().numpy() / 2)
    sigmas = np.sqrt(np.expm1(-2 * log_alpha))  # sigma / alpha, as diffusers counts them
    sampler.sigmas = torch.from_numpy(sigmas).float()
    sampler.timesteps = torch.from_numpy(times[:-1] * num_train_timesteps - 1).float()


SAMPLERS: Final[dict[str, Callable[[bool, Process], Scheduler]]] = {
    "euler_a": _euler_ancestral,
    "ddim": _ddim,
    "dpmpp": _dpm_solver,
    "euler": _euler,
}
FLOW_SAMPLERS: Final = ("euler", "dpmpp")
