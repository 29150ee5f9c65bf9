"""How fast a cascade is here: seconds per stage, and the refiner against the machine's matmul."""

import copy
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from diffusion.app.benchmarking.speed_variants import compare_variants, variants_of
from diffusion.models.grid_attention import GridAttention, attention_backend
from diffusion.models.weights import load_weights
from diffusion.pipelines.cascade import Cascade
from diffusion.pipelines.cascade_builder import PARTS, assemble, build_part, weights_of
from diffusion.pipelines.padding import round_up
from diffusion.utils.devices import DTYPE_NAMES
from diffusion.utils.measuring import Timer

RANDOM = "random"
MATMUL_SIZE = {"cpu": 2048, "cuda": 8192}
MATMUL_TRIALS = 10


@dataclass(frozen=True)
class Workload:
    height: int = 512
    width: int = 512
    frames: int = 16
    steps: int = 8
    sampler: str = "euler_a"

    @property
    def size(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"


@dataclass(frozen=True)
class Options:
    """How the networks compute, and what is compared.

    compare: "dtypes", "attention", "compile": forwards of the refiner against eager fp32.
    compare_steps: numbers of sampler steps, for which all stages are measured too.
    compare_sizes: (F, H, W) of clips, likewise.
    """

    compare: Sequence[str] = ()
    compare_steps: Sequence[int] = ()
    compare_sizes: Sequence[tuple[int, int, int]] = ()
    attention: str | None = None
    compiled: bool = False
    channels_last: bool = False


DEFAULT_OPTIONS = Options()


def benchmark(
    config: Mapping[str, Any],
    workload: Workload,
    *,
    device: torch.device,
    dtype: torch.dtype,
    weights: str | Path | None = None,
    stage: str = "all",
    options: Options = DEFAULT_OPTIONS,
    warmup: int = 1,
    repeat: int = 3,
) -> dict[str, Any]:
    """Measure `stage`: "all", or "refiner" for one forward of it alone.

    Weights that are not there are drawn at random: the time does not depend on them.
    """
    names = PARTS if stage == "all" else ("refiner",)
    parts, sources = load_or_draw(config, names, weights)
    pipeline = assemble(with_compute(config, options), parts, device=device, dtype=dtype)
    timer = Timer(device, warmup, repeat)
    result = {
        "model_id": config["model_id"],
        "machine": describe_machine(device),
        "dtype": DTYPE_NAMES[dtype],
        "compute": asdict(pipeline.compute),
        **asdict(workload),
        "weights": sources,
        "parameters": {name: count_parameters(part) for name, part in parts.items()},
    }
    if options.attention is not None:
        set_attention(pipeline.refiner, options.attention)
    if stage == "all":
        result["sizes_compared"] = {}
        for frames, height, width in options.compare_sizes:
            other = replace(workload, frames=frames, height=height, width=width)
            measured = measure_stages(pipeline, other, timer, options.compare_steps)
            result["sizes_compared"][other.size] = measured
        result |= measure_stages(pipeline, workload, timer, options.compare_steps)
    size = refiner_size(config, pipeline, workload)
    with pipeline.compute.applied():
        result["refiner"] = measure_refiner(pipeline.refiner, size, dtype, timer, options.compare)
    return result


def with_compute(config: Mapping[str, Any], options: Options) -> dict[str, Any]:
    """The config, with what `options` say of speed in place of its own."""
    cascade = dict(config.get("cascade", {}))
    chosen = {"compile": options.compiled, "channels_last": options.channels_last}
    chosen = {name: True for name, given in chosen.items() if given}
    return {**config, "cascade": {**cascade, "compute": {**cascade.get("compute", {}), **chosen}}}


def set_attention(refiner: nn.Module, name: str) -> None:
    for module in refiner.modules():
        if isinstance(module, GridAttention):
            module.attend = attention_backend(name)


def load_or_draw(
    config: Mapping[str, Any], names: tuple[str, ...], override: str | Path | None
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The networks, and for each the file of its weights or "random"."""
    paths = weights_of(config, override)
    parts, sources = {}, {}
    for name in names:
        parts[name] = build_part(config, name)
        sources[name] = RANDOM
        if name in paths and paths[name].exists():
            load_weights(parts[name], paths[name])
            sources[name] = str(paths[name])
    return parts, sources


def measure_stages(
    pipeline: Cascade, workload: Workload, timer: Timer, compare_steps: Sequence[int] = ()
) -> dict[str, Any]:
    """`stages`: time and memory of each, on a random video and on what the one before gave.

    `seconds`: of all. `steps_compared`: the same with other numbers of steps.
    """
    generator = torch.Generator().manual_seed(0)
    size = (1, 3, workload.frames, workload.height, workload.width)
    video = torch.rand(size, generator=generator) * 2 - 1
    made: dict[str, torch.Tensor] = {}

    def restore(steps: int = workload.steps) -> torch.Tensor:
        return pipeline.restore(
            made["encode"], steps=steps, sampler=workload.sampler, preview=made["preview"]
        )

    stages = {
        "encode": lambda: pipeline.encode(video),
        "preview": lambda: pipeline.preview(made["encode"]),
        "denoise": restore,
        "decode": lambda: pipeline.decode_vae(made["denoise"]),
    }
    measured = {
        name: timer(lambda name=name, run=run: made.update({name: run()}))
        for name, run in stages.items()
    }
    seconds = sum(stage["seconds"] for stage in measured.values())
    others = seconds - measured["denoise"]["seconds"]
    compared = {
        steps: others + timer(lambda steps=steps: restore(steps))["seconds"]
        for steps in compare_steps
    }
    return {"stages": measured, "seconds": seconds, "steps_compared": compared}


def refiner_size(
    config: Mapping[str, Any], pipeline: Cascade, workload: Workload
) -> tuple[int, int, int]:
    """(F, H, W) of the latents in one forward: the clip, or the window and tile that it is cut to.

    Padded as the pipeline pads them.
    """
    with torch.device("meta"):  # only their compression is asked for
        compressor, vae = build_part(config, "compressor"), build_part(config, "vae")
    time_multiple, *space_multiples = pipeline.refiner.size_multiple
    frames = 1 if workload.frames == 1 else round_up(pipeline.windows.window, time_multiple)
    sides = []
    for pixels, multiple in zip((workload.height, workload.width), space_multiples, strict=True):
        padded = round_up(pixels, compressor.spatial_compression)
        side = round_up(padded // vae.spatial_compression, multiple)
        sides.append(min(side, pipeline.tiles.tile or side))
    return frames, sides[0], sides[1]


@torch.no_grad()
def measure_refiner(
    refiner: nn.Module,
    size: tuple[int, int, int],
    dtype: torch.dtype,
    timer: Timer,
    compare: Sequence[str] = (),
) -> dict[str, Any]:
    """One forward on latents of `size` (F, H, W): time, arithmetic and share of the matmul peak.

    compare: see `variants_of`.
    """
    channels = (refiner.latent_channels, refiner.condition_channels)
    x_t, condition = (torch.randn(1, c, *size, device=timer.device) for c in channels)
    timestep = torch.full((1,), 500.0, device=timer.device)

    def forward() -> Tensor:
        return refiner(x_t, timestep, condition, image_mode=size[0] == 1)

    flop, run = count_flop(refiner, size), timer(forward)
    peak, speed = matmul_flop_per_second(timer.device, dtype), flop / run["seconds"]
    frames, height, width = size
    result = {
        "size": list(size),
        "tokens": frames * (height // refiner.patch_size) * (width // refiner.patch_size),
        "tflop": flop / 1e12,
        **run,
        "tflop_per_s": speed / 1e12,
        "matmul_tflop_per_s": peak / 1e12,
        "share_of_matmul": speed / peak,
    }
    if compare:
        variants = variants_of(dtype, compare)
        result["variants"] = compare_variants(refiner, forward, variants, timer)
    return result


def count_flop(refiner: nn.Module, size: tuple[int, int, int]) -> int:
    """Of one forward, a multiplication and an addition counted as two; nothing is computed."""
    shapes = copy.deepcopy(refiner).to("meta")
    channels = (refiner.latent_channels, refiner.condition_channels)
    x_t, condition = (torch.empty(1, c, *size, device="meta") for c in channels)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        timestep = torch.empty(1, device="meta")
        shapes(x_t, timestep, condition, image_mode=size[0] == 1)
    return counter.get_total_flops()


def matmul_flop_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """The best of some large square matrix products: what the machine can do just now."""
    n = MATMUL_SIZE[device.type]
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    runs = Timer(device, warmup=2, repeat=MATMUL_TRIALS)(lambda: a @ b)["runs"]
    return 2 * n**3 / min(runs)


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def describe_machine(device: torch.device) -> dict[str, Any]:
    cuda = device.type == "cuda"
    return {
        "device": str(device),
        "name": torch.cuda.get_device_name(device) if cuda else cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def cpu_name() -> str:
    """The processor's model, where the system says it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
