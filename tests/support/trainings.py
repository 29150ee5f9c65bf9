"""Trainings of the tiny cascade: in this process, and in processes that start quickly."""

import json
import os
import signal
import sys
from dataclasses import replace
from math import nan
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import tiny
import torch
from accelerate import DistributedType, PartialState
from forked import PROCESSES, ranks_of
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from diffusion.config import load_config
from diffusion.data.training.batch import Batch
from diffusion.training.processes import join_processes
from diffusion.training.stages.stage import Stage
from diffusion.training.train_options import read_train_options
from diffusion.training.trainer import Trainer
from diffusion.training.trainer_builder import build_trainer
from diffusion.utils.files import RECORD

# Blocks of 8x8 pixels in place of 32x32: their principal components are found in no time.
COMPRESSOR = """
compressor.update(stem=2, latent_channels=4)
previewer.update(stem=2, latent_channels=4)
video_list = {videos!r}
data = dict(type="RandomClips", cache_dir={cache!r}, batch_size=4, size=32, num_frames=2)
train = dict(
    stage=dict(type="CompressorStage"),
    loop=dict(max_steps=30, ema_decay=0.9, log_interval=5, num_workers=0),
    learning_rate=dict(peak=3e-3, warmup_steps=3),
    saving=dict(interval=10),
)
"""
REFINER = """
video_list = {videos!r}
data = dict(type="RandomLatents", folder={latents!r}, batch_size=4, size=8, num_frames=4)
train = dict(
    stage=dict(type="RefinerStage", image_share=0.3, position_range=[2, 4, 4]),
    loop=dict(max_steps=40, ema_decay=0.9, log_interval=20, num_workers=0),
    learning_rate=dict(peak=3e-3, warmup_steps=2),
    saving=dict(interval=40),
)
"""
TIMINGS = {"seconds", "clips_per_second", "data_share"}


def compressor_config(folder: Path, video: Path, weights: Path) -> Path:
    """A config that trains the tiny compressor and previewer; `weights` holds the cascade's."""
    extra = COMPRESSOR.format(videos=[str(video)], cache=str(folder / "frames"))
    return tiny.write_config(folder / "train.py", extra, weights)


def trainer_of(path: Path, work_dir: Path, *overrides: str, **options) -> Trainer:
    return build_trainer(load_config(path, overrides), work_dir, **options)


def scalars(work_dir: Path) -> list[dict[str, float]]:
    """Everything recorded but timings."""
    lines = map(json.loads, (work_dir / "scalars.jsonl").read_text().splitlines())
    return [{name: line[name] for name in line if name not in TIMINGS} for line in lines]


def same(one: object, other: object) -> bool:
    """Whether two nested states are equal, bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def same_weights(one: Path, other: Path) -> bool:
    names = sorted(path.name for path in one.glob("*.safetensors"))
    assert names
    return all(same(load_file(one / name), load_file(other / name)) for name in names)


class Line(Stage):
    """Fits a weight to the mean of the pixels; not finite from the second batch on, if asked."""

    def __init__(self, diverge: bool = False):
        super().__init__(line=torch.nn.Linear(1, 1))
        self.diverge = diverge

    def loss(self, batch, draws):
        error = self.parts["line"](batch.video.mean().view(1)) - 1
        if self.diverge and batch.video.mean() > 0:
            error = error * float("nan")
        return {"error": error.square().mean()}


def numbered(step: int) -> Batch:
    return Batch(torch.full((1, 3, 1, 2, 2), float(step)), [f"clip{step}.mp4"])


def line_trainer(
    work_dir: Path, stage: Stage | None = None, train: dict | None = None, **given
) -> Trainer:
    """train: as in a config, over what is usual here. given: to the Trainer."""
    torch.manual_seed(0)
    usual = {
        "loop": {"max_steps": 5, "num_workers": 0},
        "learning_rate": {"peak": 0.1, "warmup_steps": 1},
    }
    train = {room: usual.get(room, {}) | rest for room, rest in (usual | (train or {})).items()}
    options = read_train_options(train)
    return Trainer(
        stage=stage or Line(), batches=numbered, work_dir=work_dir, options=options, **given
    )


# Other processes.


def start(target, *arguments) -> BaseProcess:
    process = PROCESSES.Process(target=quiet, args=(target, *arguments))
    process.start()
    return process


def quiet(target, *arguments) -> None:
    """Run with one thread, so that sums have one order, and without output."""
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    os.dup2(sys.stderr.fileno(), 2)
    torch.set_num_threads(1)
    target(*arguments)


def train(path: Path, work_dir: Path, overrides: tuple[str, ...] = (), kill_at_rename: int = 0):
    """kill_at_rename: SIGKILL just before the file of that number, from 1, gets its name."""
    if kill_at_rename:
        counted = iter(range(1, kill_at_rename + 1))
        rename = Path.replace

        def counting(self, target):
            of_a_save = "checkpoints" in str(target) or target.suffix == ".safetensors"
            of_a_save = of_a_save or target.name == RECORD
            if of_a_save and next(counted) == kill_at_rename:
                os.kill(os.getpid(), signal.SIGKILL)
            return rename(self, target)

        Path.replace = counting
    stopped = trainer_of(path, work_dir, *overrides).run()
    sys.exit(0 if stopped is None else 128 + stopped)


def train_together(
    world_size: int, path: Path, work_dir: Path, overrides: tuple[str, ...] = (), **options
) -> list[BaseProcess]:
    """Start `world_size` processes that train as one; returns them when they have ended."""
    processes = [
        start(train_as_rank, rank, path, work_dir, overrides, options)
        for rank in ranks_of(world_size)
    ]
    for process in processes:
        process.join(120)
        process.kill()
    return processes


def train_as_rank(
    environment: dict[str, str],
    path: Path,
    work_dir: Path,
    overrides: tuple[str, ...],
    options: dict[str, Any],
) -> None:
    """One process of several."""
    rank = int(environment["RANK"])
    os.environ |= environment
    if options.get("sharded"):
        allow_sharding_on_cpu()
    trainer = trainer_of(path, work_dir, *overrides, dtype=options.get("dtype", torch.float32))
    if options.get("sharded"):
        trainer.config = None  # it may continue what other numbers of processes began
        trainer.start()
        assert all(isinstance(p, DTensor) for p in trainer.parts.parameters())
        assert all(isinstance(mean, DTensor) for mean in trainer.average.weights.values())
        assert (trainer.state.snapshot() is None) == (rank > 0)  # one copy on the CPU is enough
    if options.get("nan_on") == rank:
        batches = trainer.batches
        trainer.batches = lambda step: replace(batches(step), video=batches(step).video * nan)
    if options.get("stop_on") == rank:
        stopping = trainer.batches

        def stopped(step):
            if step == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return stopping(step)

        trainer.batches = stopped
    stopped_by = trainer.run()
    trainer.accelerator.end_training()
    sys.exit(0 if stopped_by is None else 128 + stopped_by)


def allow_sharding_on_cpu() -> None:
    """accelerate uses FSDP2 where it sees GPUs; over gloo the same code shards on CPUs."""
    join_processes(torch.device("cpu"))
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
