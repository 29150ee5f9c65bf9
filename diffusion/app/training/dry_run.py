"""A training before it starts: what it consists of, and one step of it on random data."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from diffusion.app.benchmarking.speed import count_parameters, describe_machine
from diffusion.data.training.batch import Batch, LatentBatch
from diffusion.data.training.random_latents import RandomLatents
from diffusion.models.dit import VideoDiT
from diffusion.pipelines.cascade_builder import build_part
from diffusion.registry import call_with, keyword_parameters, split_type
from diffusion.training.draws import Draws
from diffusion.training.ema import ema_copy
from diffusion.training.optimizers import build_optimizer
from diffusion.training.stages.frozen import FrozenNetworks
from diffusion.training.stages.stage import Stage
from diffusion.training.train_options import TrainOptions, read_train_options
from diffusion.training.trainer_builder import (
    DATA,
    PROVIDERS,
    STAGES,
    check_files,
    check_training,
    conditioning_of,
)
from diffusion.utils.devices import DTYPE_NAMES
from diffusion.utils.measuring import Timer


@dataclass(frozen=True)
class StepWorkload:
    """What one process sees in one step: clips of pixels, or of VAE latents."""

    batch_size: int
    num_frames: int
    height: int
    width: int
    latents: bool

    def __str__(self) -> str:
        unit = "VAE latents" if self.latents else "pixels"
        return (
            f"{self.batch_size} clips of {self.num_frames} frames of "
            f"{self.width}x{self.height} {unit}"
        )


def dry_run(
    config: Mapping[str, Any], device: torch.device, dtype: torch.dtype, *, run: bool = True
) -> dict[str, Any]:
    """Count what a training on one process consists of, and measure its second step.

    Weights and data are random. Counting computes nothing, so that any size can be counted on any
    machine; without `run` it is all that happens, and no file need be there. With it, the weights
    that the stage starts from must be.
    """
    check_training(config)
    if run:
        check_files(config, networks=False)
    train = read_train_options(config["train"])
    workload = workload_of(config)
    accumulation = train.loop.gradient_accumulation
    report = {
        "model_id": config["model_id"],
        "stage": config["train"]["stage"]["type"],
        "machine": describe_machine(device),
        "dtype": DTYPE_NAMES[dtype],
        "data": str(workload),
        "optimizer": train.optimizer["type"],
        "clips_per_step": workload.batch_size * accumulation,
    }
    report |= count(config, workload, accumulation)
    if run:
        report |= measure(config, workload, train, device, dtype)
        report["tflop_per_s"] = report["tflop"] / report["seconds"]
        report["clips_per_second"] = report["clips_per_step"] / report["seconds"]
    return report


def workload_of(config: Mapping[str, Any]) -> StepWorkload:
    """The shape of the batches that the config's data will have."""
    target, options = split_type(DATA, config["data"], "data")
    options = with_defaults(target, options)
    height, width = largest(options["size"])
    return StepWorkload(
        options["batch_size"], options["num_frames"], height, width, target is RandomLatents
    )


def largest(size: int | Sequence[int] | Sequence[Sequence[int]]) -> tuple[int, int]:
    """(height, width) of a side, of (height, width), or of the largest of several."""
    if isinstance(size, int):
        return size, size
    height, width = size if isinstance(size[0], int) else max(size, key=math.prod)
    return height, width


def random_batch(config: Mapping[str, Any], workload: StepWorkload, device: torch.device) -> Any:
    """Batch or LatentBatch, of what a config's data source would give."""
    clips, frames = workload.batch_size, workload.num_frames
    size = (workload.height, workload.width)
    sources = [f"random {i}" for i in range(clips)]

    def draw(channels: int, *size: int) -> Tensor:
        return torch.rand(clips, channels, frames, *size, device=device) * 2 - 1

    if not workload.latents:
        return Batch(draw(3, *size), sources)
    with torch.device("meta"):
        compressor, vae = build_part(config, "compressor"), build_part(config, "vae")
    conditioning = conditioning_of(config)
    return LatentBatch(
        target=draw(vae.latent_channels, *size),
        semantic=draw(
            compressor.latent_channels, *(side // conditioning.upsampling for side in size)
        ),
        base=draw(vae.latent_channels, *size) if conditioning.uses_base else None,
        sources=sources,
    )


def build_stage(config: Mapping[str, Any]) -> Stage:
    """The stage as training builds it, around random weights: nothing is read."""
    target, options = split_type(STAGES, config["train"]["stage"], "train.stage")
    providers = {**PROVIDERS, "networks": lambda config: FrozenNetworks(config, random=True)}
    wanted = providers.keys() & keyword_parameters(target)
    given = {name: providers[name](config) for name in wanted}
    return call_with(target, options, "train.stage", **given).train()


class UsualDraws(Draws):
    """What most steps draw: frames are videos, not images. (And numbers without tensors.)"""

    def shared_uniform(self) -> float:
        return 0.999


def backward(stage: Stage, batch: Any, share: float = 1.0) -> Tensor:
    """The loss of a batch; its gradients, times `share`, are added to what is there."""
    device = next(stage.parts.parameters()).device
    draws = UsualDraws(seed=0, step=0, first=0, count=len(batch), device=device)
    loss = torch.stack(list(stage.loss(batch, draws).values())).sum()
    (share * loss).backward()
    return loss.detach()


def count(config: Mapping[str, Any], workload: StepWorkload, accumulation: int) -> dict[str, Any]:
    """Parameters, tokens and arithmetic of one step, by tensors that have a shape and no values."""
    tokens: list[int] = []
    with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter:
        stage = build_stage(config)
        count_tokens(stage, tokens)
        backward(stage, random_batch(config, workload, torch.device("cpu")))
    networks: FrozenNetworks | None = getattr(stage, "networks", None)
    frozen = {} if networks is None else networks.loaded
    return {
        "trained": {
            name: sum(p.numel() for p in part.parameters() if p.requires_grad)
            for name, part in stage.parts.items()
        },
        "frozen": {name: count_parameters(part) for name, part in frozen.items()},
        "tokens": sum(tokens) * accumulation,
        "tflop": counter.get_total_flops() * accumulation / 1e12,
    }


def count_tokens(stage: Stage, tokens: list[int]) -> None:
    """Append the number of tokens to the list whenever a transformer runs."""

    def hook(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        tokens.append(output[..., 0].numel())  # (B, F, h, w, D)

    for part in stage.parts.values():
        if isinstance(part, VideoDiT):
            part.x_embedder.register_forward_hook(hook)


def measure(
    config: Mapping[str, Any],
    workload: StepWorkload,
    train: TrainOptions,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Seconds of a step, after one that allocates what all need, and the memory of both."""
    stage = build_stage(config).to(device)
    average = ema_copy(stage.parts)  # for its memory
    optimizer = build_optimizer(train.optimizer, stage.parts.parameters(), train.learning_rate.peak)
    batch = random_batch(config, workload, device)
    accumulation = train.loop.gradient_accumulation
    losses: list[Tensor] = []

    def step() -> None:
        for _ in range(accumulation):
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                losses.append(backward(stage, batch, share=1 / accumulation))
        nn.utils.clip_grad_norm_(stage.parts.parameters(), train.loop.gradient_clip)
        optimizer.step()
        optimizer.zero_grad()

    with train.compute.on(device, dtype).applied():
        run = Timer(device, warmup=1, repeat=1)(step)
    state = [t for s in optimizer.state.values() for t in s.values() if isinstance(t, Tensor)]
    return {
        "loss": losses[-1].item(),
        "seconds": run["seconds"],
        "peak_memory_mb": run["peak_memory_mb"],
        "weights_mb": megabytes(stage.parts.parameters()),
        "average_mb": megabytes(average.parameters()),
        "optimizer_mb": megabytes(state),
    }


def with_defaults(target: Callable, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, and what `target` takes where they say nothing."""
    parameters = keyword_parameters(target).values()
    return {p.name: p.default for p in parameters if p.default is not p.empty} | dict(options)


def megabytes(tensors: Iterable[Tensor]) -> float:
    return sum(t.numel() * t.element_size() for t in tensors) / 1e6


def print_dry_run(report: Mapping[str, Any]) -> None:
    console, machine = Console(), report["machine"]
    table = Table(
        title=f"{report['model_id']}, {report['stage']}, {report['dtype']} on {machine['name']}",
        show_header=False,
    )
    for kind in ("trained", "frozen"):
        for name, parameters in report[kind].items():
            table.add_row(f"{name}, {kind}", f"{parameters / 1e6:,.2f} M parameters")
    table.add_row("data of one process", report["data"])
    table.add_row("clips per step and process", str(report["clips_per_step"]))
    if report["tokens"]:
        table.add_row("tokens per step", f"{report['tokens']:,}")
    table.add_row("arithmetic per step", f"{report['tflop']:,.4g} TFLOP")
    if "seconds" in report:
        table.add_row("seconds per step", f"{report['seconds']:.3g}")
        table.add_row("clips per second", f"{report['clips_per_second']:.3g}")
        table.add_row("speed", f"{report['tflop_per_s']:.3g} TFLOP/s")
        table.add_row("weights, and as many gradients", f"{report['weights_mb']:,.0f} MB")
        table.add_row("averaged weights", f"{report['average_mb']:,.0f} MB")
        table.add_row(f"state of {report['optimizer']}", f"{report['optimizer_mb']:,.0f} MB")
        table.add_row("peak memory", f"{report['peak_memory_mb']:,.0f} MB")
    console.print(table)
