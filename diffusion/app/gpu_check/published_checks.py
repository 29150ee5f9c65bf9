"""The published configuration with random weights: a reconstruction, a training step, its speed."""

import json
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch

from diffusion.app.benchmarking.speed import Options, Workload, benchmark
from diffusion.app.gpu_check.check_result import FAILED, PASSED, Outcome, Setting
from diffusion.app.gpu_check.project_commands import command, run
from diffusion.app.training.dry_run import dry_run
from diffusion.config import ROOT, load_config
from diffusion.models.weights import save_weights
from diffusion.pipelines.cascade_builder import PARTS, build_part
from diffusion.utils.devices import DTYPE_NAMES, choose_dtype

CONFIG = ROOT / "configs/s1024.effn-f32.py"
EXAMPLE = ROOT / "example/city.mp4"
# The same in small: narrow networks, frames of 64 pixels.
SMALL = (
    *("refiner.hidden_size=48", "refiner.depth=2", "refiner.num_heads=2"),
    "refiner.grids=[[1, 4], None]",
    *("vae.block_out_channels=[32, 32, 32, 32]", "vae.layers_per_block=1"),
    *("data.size=64", "data.batch_size=1", "cascade.tile=16"),
)
NO_WEIGHTS = "train.stage.init_from=None"


def overrides(setting: Setting) -> tuple[str, ...]:
    return SMALL if setting.small else ()


@cache
def random_weights(folder: Path, changes: tuple[str, ...]) -> Path:
    """A folder with <part>.safetensors of every part, drawn at random."""
    config = load_config(CONFIG, changes)
    torch.manual_seed(0)
    folder.mkdir()
    for name in PARTS:
        save_weights(build_part(config, name), folder / f"{name}.safetensors", {"part": name})
    return folder


def check_recon(setting: Setting) -> Iterator[Outcome]:
    """tools/reconstruct.py at the published size, to its files."""
    changes, output = overrides(setting), setting.folder / "recon"
    weights = random_weights(setting.folder / "random", changes)
    size, frames = (64, 2) if setting.small else (1024, 8)
    arguments = [EXAMPLE, "--config", CONFIG, "--weights", weights, "--output-dir", output]
    arguments += ["--size", size, "--square", "--num-frames", frames, "--device", setting.device]
    run(command("tools/reconstruct.py", *arguments, *cfg_options(changes)))
    metrics = json.loads((output / "metrics.json").read_text())
    # in float16 random weights may leave its range, which trained ones do not
    is_sound = math.isfinite(metrics["psnr"]) or metrics["dtype"] == "float16"
    seconds = ", ".join(f"{name} {value:.2f}" for name, value in metrics["seconds"].items())
    yield Outcome(
        "recon, published configuration",
        PASSED if is_sound else FAILED,
        f"{frames} frames of {size}x{size}, {metrics['dtype']}",
        note=f"seconds: {seconds}",
        peak_memory_mb=metrics["peak_memory_mb"],
        details={"seconds": metrics["seconds"]},
    )


def check_training_step(setting: Setting) -> Iterator[Outcome]:
    """One step of the published recipe on random clips; its memory and time."""
    config = load_config(CONFIG, (*overrides(setting), NO_WEIGHTS))
    dtype = choose_dtype("auto", setting.device)
    report = dry_run(config, setting.device, dtype)
    yield Outcome(
        "training step, published configuration",
        PASSED if math.isfinite(report["loss"]) else FAILED,
        f"{report['data']}, {DTYPE_NAMES[dtype]}, loss {report['loss']:.4g}",
        note=f"{report['seconds']:.3g} s a step, {report['tflop_per_s']:.3g} TFLOP/s",
        peak_memory_mb=report["peak_memory_mb"],
        details={key: value for key, value in report.items() if isinstance(value, float | int)},
    )


def check_speed(setting: Setting, compare: tuple[str, ...] = ()) -> Iterator[Outcome]:
    """tools/benchmark.py's numbers: all stages, and forwards of the refiner in several ways."""
    config = load_config(CONFIG, overrides(setting))
    workload = Workload(64, 64, 8, 2) if setting.small else Workload(1024, 1024, 8, 8)
    result = benchmark(
        config,
        workload,
        device=setting.device,
        dtype=choose_dtype("auto", setting.device),
        options=Options(compare=compare),
        repeat=1 if setting.small else 3,
    )
    peak = max(stage["peak_memory_mb"] or 0 for stage in result["stages"].values())
    yield Outcome(
        "speed" + (f", {' and '.join(compare)}" if compare else ""),
        value=f"{workload.size}: {result['seconds']:.3g} s in {workload.steps} steps",
        note=f"{result['refiner']['share_of_matmul']:.0%} of the matmul peak",
        peak_memory_mb=peak,
        details=result,
    )


def cfg_options(changes: tuple[str, ...]) -> list[str]:
    return ["--cfg-options", *changes] if changes else []
