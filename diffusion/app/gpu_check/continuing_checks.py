"""Runs that are killed and go on, with the embedded model: their results are those of one run."""

import json
from collections.abc import Iterator
from pathlib import Path

from diffusion.app.gpu_check.check_result import Outcome, Setting, Skipped, at_most
from diffusion.app.gpu_check.project_commands import command, kill_when, run
from diffusion.app.gpu_check.published_checks import EXAMPLE
from diffusion.config import ROOT

COMPACT = ROOT / "configs/compact.effn-f32.py"
STEPS, SAVED_EVERY = 6, 2
PSNR_BOUND = 0.01  # dB: frames may be rounded otherwise where windows are computed again
LOSS_BOUND = 1e-2  # of the last loss, relative: gradients are summed in another order on a GPU


def recon_arguments(setting: Setting, output: Path) -> list[object]:
    size, frames, steps = (64, 24, 2) if setting.small else (512, "all", 8)
    options = ["--size", size, "--num-frames", frames, "--steps", steps, "--dtype", "fp32"]
    return [EXAMPLE, "--output-dir", output, "--device", setting.device, *options]


def check_killed_recon(setting: Setting) -> Iterator[Outcome]:
    """kill -9 after the first finished window, and the same command again."""
    whole, parts = setting.folder / "recon_whole", setting.folder / "recon_killed"
    kept = parts / ".unfinished" / "000000.safetensors"
    words = command("tools/reconstruct.py", *recon_arguments(setting, parts))
    if not kill_when(words, kept.exists):
        raise Skipped("the command was done before it could be killed")
    if not kept.exists():
        raise AssertionError("what was finished did not survive the kill")
    run(words)
    run(command("tools/reconstruct.py", *recon_arguments(setting, whole)))
    apart = abs(psnr_in(whole) - psnr_in(parts))
    yield at_most("recon after kill -9, PSNR (dB) apart", apart, PSNR_BOUND)


def psnr_in(folder: Path) -> float:
    return json.loads((folder / "metrics.json").read_text())["psnr"]


def training_arguments(setting: Setting, work_dir: Path, *changes: str) -> list[object]:
    size = 128 if setting.small else 256  # of 8 frames: what the attention grids need
    options = [
        f"video_list=['{EXAMPLE}']",
        f"data.cache_dir='{setting.folder / 'frames'}'",
        f"data.size={size}",
        "data.num_frames=8",
        "data.batch_size=2",
        *("validation.num_clips=1", "validation.num_frames=2", "validation.size=64"),
        f"train.loop.max_steps={STEPS}",
        "train.loop.log_interval=1",
        f"train.saving.interval={SAVED_EVERY}",
        *changes,
    ]
    where = [COMPACT, "--work-dir", work_dir, "--device", setting.device, "--dtype", "fp32"]
    return [*where, "--cfg-options", *options]


def check_killed_training(setting: Setting) -> Iterator[Outcome]:
    """kill -9 after the first checkpoint, and the same command again."""
    whole, parts = setting.folder / "train_whole", setting.folder / "train_killed"
    words = command("tools/train.py", *training_arguments(setting, parts))
    if not kill_when(words, (parts / "checkpoints" / "latest").exists):
        raise Skipped("the training was done before it could be killed")
    run(words)
    run(command("tools/train.py", *training_arguments(setting, whole)))
    lines = [scalars_of(folder) for folder in (whole, parts)]
    if [line["step"] for line in lines[1]] != list(range(1, STEPS + 1)):
        raise AssertionError("steps are missing from the record of the run that was killed")
    last = [line[-1]["loss"] for line in lines]
    apart = abs(last[0] - last[1]) / abs(last[0])
    yield at_most("training after kill -9, last loss apart", apart, LOSS_BOUND)


def scalars_of(work_dir: Path) -> list[dict[str, float]]:
    lines = map(json.loads, (work_dir / "scalars.jsonl").read_text().splitlines())
    return [line for line in lines if "loss" in line]
