"""The training loop: one for all stages, on one or several processes."""

import logging
import signal
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn

from diffusion.data.training.batch import Batch, LatentBatch
from diffusion.models.dit import VideoDiT
from diffusion.training.checkpoint import Background, Checkpoints, State
from diffusion.training.display import Display
from diffusion.training.draws import Draws
from diffusion.training.ema import Average, ema_copy
from diffusion.training.learning_rate import LearningRate
from diffusion.training.loading import fetch
from diffusion.training.optimizers import build_optimizer
from diffusion.training.processes import (
    build_accelerator,
    gather_batch,
    host_group,
    in_any_process,
    whole,
)
from diffusion.training.records import Record, Records
from diffusion.training.run_state import RunState, write_averages
from diffusion.training.same_run import check_same_config, plain
from diffusion.training.stages.stage import Batches, Stage
from diffusion.training.stopping import StopRequest
from diffusion.training.train_options import TrainOptions
from diffusion.training.validation import Validation
from diffusion.utils.errors import ConfigError
from diffusion.utils.files import make_folder

log = logging.getLogger(__name__)


class StageLoss(nn.Module):
    """A stage as a module whose forward is the loss: what DDP and FSDP2 can wrap."""

    def __init__(self, stage: Stage):
        super().__init__()
        self.stage = stage

    def forward(self, batch: Batch | LatentBatch, draws: Draws) -> dict[str, Tensor]:
        return {name: term.float() for name, term in self.stage.loss(batch, draws).items()}


class Trainer:
    """Trains `stage.parts` on `batches(step)` and leaves their moving averages in `work_dir`.

    Running it again continues after the last checkpoint with the same data and noise: both are
    functions of (seed, step).

    batch_size: clips in a batch of one process, for a learning rate that depends on them.
    config: the whole config; a run does not continue with another one.
    """

    def __init__(
        self,
        *,
        stage: Stage,
        batches: Batches,
        work_dir: str | Path,
        options: TrainOptions,
        batch_size: int | None = None,
        validation: Validation | None = None,
        config: Mapping[str, Any] | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        sharding = options.fsdp
        if sharding is not None:
            sharding.check(stage.parts, options.optimizer["type"])
        self.stage, self.batches, self.validation = stage, batches, validation
        self.work_dir, self.config = Path(work_dir), config
        self.options, self.loop, self.batch_size = options, options.loop, batch_size
        self.checkpoints = Checkpoints(self.work_dir / "checkpoints", options.saving)
        self.accelerator = build_accelerator(
            torch.device(device),
            dtype,
            self.loop.gradient_accumulation,
            sharding,
            frozen=[child for child in stage.children() if child is not stage.parts],
        )
        self.host_group = host_group(self.accelerator.state)
        self.learning_rate = self.scaled(options.learning_rate)
        self.compute = options.compute.on(self.device, dtype)
        stage.to(self.device)
        on_cpu = self.device.type == "cpu"  # whose convolutions train faster in that layout
        if (on_cpu or self.compute.channels_last) and sharding is None:
            to_channels_last(stage)  # FSDP2 takes contiguous weights only
        self.parts: nn.ModuleDict = stage.parts
        self.optimizer = build_optimizer(
            options.optimizer, self.parts.parameters(), self.learning_rate.peak
        )
        self.records, self.saving = Records(self.accelerator), Background()
        self.display = Display(self.work_dir, self.loop.log_interval, self.is_main)
        self.meter = self.display.meter
        self.step = 0
        self.state: RunState | None = None  # from `start` on

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    @property
    def average(self) -> Average:
        return self.state.average

    @property
    def total_batch(self) -> int:
        """Clips per update, over all processes."""
        if self.batch_size is None:
            raise ConfigError("train.learning_rate.auto needs data.batch_size, of one process")
        clips = self.batch_size * self.accelerator.num_processes
        return clips * self.loop.gradient_accumulation

    def scaled(self, given: LearningRate) -> LearningRate:
        """For the batch that there is, if that is wished."""
        if given.auto is None:
            return given
        scaled = given.for_batch(self.total_batch)
        log.info(
            "train.learning_rate.auto: %d clips per step make a learning rate of %.3g out of %.3g",
            *(self.total_batch, scaled.peak, given.peak),
        )
        return scaled

    # The loop

    def run(self) -> signal.Signals | None:
        """Train to the last step; returns the signal that stopped it before, if one did."""
        if self.state is None:
            self.start()
        if self.step >= self.loop.max_steps:
            log.info("%s: finished after step %d already", self.work_dir, self.step)
            return None
        self.model.train()
        stopped = False
        with (
            StopRequest() as stop,
            self.saving,
            self.compute.applied(),
            self.display.opened(self.step, self.loop.max_steps),
            # an error must end the loader processes, which nothing else does
            closing(self.load()) as batches,
        ):
            while self.step < self.loop.max_steps and not stopped:
                self.update(batches)
                stopped = in_any_process(stop.received is not None, self.host_group)
                if stopped or self.shows or self.validates or self.saves:
                    self.look()
                self.display.advance(self.step, self.optimizer.param_groups[0]["lr"])
                if self.validates:
                    self.validate()
                if stopped or self.saves:
                    self.save()
                self.saving.check()
        if not stopped:
            log.info("%s: finished after step %d", self.work_dir, self.step)
            return None
        log.info("%s: stopped after step %d; the same command continues", self.work_dir, self.step)
        return stop.received or signal.SIGTERM  # of another process

    def load(self) -> Iterator[Batch | LatentBatch]:
        """The batches of all steps that are left."""
        parts = self.loop.gradient_accumulation
        steps = range(self.step * parts, self.loop.max_steps * parts)
        on_gpu = self.device.type == "cuda"
        return fetch(self.batches, steps, self.loop.num_workers, pin_memory=on_gpu)

    @property
    def is_last(self) -> bool:
        return self.step == self.loop.max_steps

    @property
    def shows(self) -> bool:
        return self.display.due(self.step)

    @property
    def validates(self) -> bool:
        return self.validation is not None and (self.validation.due(self.step) or self.is_last)

    @property
    def saves(self) -> bool:
        return self.options.saving.due(self.step) or self.is_last

    def update(self, batches: Iterator[Batch | LatentBatch]) -> None:
        """One update of the weights. A GPU is given its work and not waited for."""
        self.set_lr()
        losses, sources = [], []
        for micro in range(self.loop.gradient_accumulation):
            with self.meter.waiting():
                batch = next(batches).to(self.device)
            with self.accelerator.accumulate(self.model):
                with self.accelerator.autocast():
                    terms = self.model(batch, self.draws(micro, len(batch)))
                loss = torch.stack(list(terms.values())).sum()
                self.accelerator.backward(loss)
            losses.append(torch.stack([loss, *terms.values()]).detach())
            sources += batch.sources
        mean = torch.stack(losses).mean(0).unbind()
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.loop.gradient_clip)
        named = dict(zip(("loss", *terms), mean, strict=True))
        self.records.add(Record(self.step, named, whole(norm), sources))
        if self.device.type == "cpu":
            self.look()  # at once, since it makes nobody wait: before the weights change
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.average.update(self.step)
        self.meter.step(clips=len(sources) * self.accelerator.num_processes)

    def set_lr(self) -> None:
        lr = self.learning_rate.at(self.step, self.loop.max_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def draws(self, micro: int, count: int) -> Draws:
        """What this process draws for the batch that is number `micro` of this update."""
        return Draws(
            seed=self.loop.seed,
            step=self.step * self.loop.gradient_accumulation + micro,
            first=self.accelerator.process_index * count,
            count=count,
            device=self.device,
        )

    def look(self) -> None:
        """Read what the updates since the last time gave; all was finite, or the run ends here."""
        for scalars in self.records.look():
            self.meter.add(scalars)

    def validate(self) -> None:
        with self.meter.paused():
            network = self.average.gather()
            if self.is_main:
                with self.accelerator.autocast():
                    self.validation.run(self.stage, network, self.step, self.display.monitor)
            self.accelerator.wait_for_everyone()

    # Beginning, saving and continuing

    def start(self) -> None:
        """Continue after the last checkpoint, or begin."""
        if self.is_main:
            make_folder(self.work_dir)
            self.checkpoints.clean(f"{name}.safetensors" for name in self.parts)
        self.accelerator.wait_for_everyone()
        state = self.checkpoints.load()
        if state is None:
            self.stage.prepare(lambda step: gather_batch(self.accelerator, self.batches(step)))
        else:
            if self.config is not None and state.get("config") is not None:
                check_same_config(state["config"], self.config, self.work_dir)
            self.parts.load_state_dict(state["model"])
        network = ema_copy(self.parts)
        if state is not None:
            network.load_state_dict(state["ema"])
        if self.compute.compile:
            compile_blocks(self.parts)
        self.model, self.optimizer = self.accelerator.prepare(StageLoss(self.stage), self.optimizer)
        average = Average(network, self.parts, self.loop.ema_decay)
        self.state = RunState(self.accelerator, self.parts, average, self.optimizer, self.meter)
        if state is None:
            set_seed(self.loop.seed, device_specific=True)
            return
        self.step = state["step"]
        self.state.restore(state)
        self.state.restore_random(state, seed=self.loop.seed + self.step)
        log.info("continuing after step %d of %s", self.step, self.work_dir)

    def save(self) -> None:
        """Take the state as it is now; write it while training goes on."""
        snapshot = self.state.snapshot()
        if snapshot is not None:
            config = None if self.config is None else plain(self.config)
            self.saving.start(self.write, {"step": self.step, **snapshot, "config": config})

    def write(self, state: State) -> None:
        """The averaged weights for inference, then the checkpoint beside them."""
        write_averages(state["ema"], list(self.parts), self.work_dir, state["step"])
        self.checkpoints.save(state["step"], state)


def to_channels_last(module: nn.Module) -> None:
    """The weights of image convolutions; videos' have no such format."""
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)


def compile_blocks(module: nn.Module) -> None:
    """The blocks of transformers, each by itself: soon done, and once for all blocks."""
    for child in module.modules():
        for block in child.blocks if isinstance(child, VideoDiT) else ():
            block.compile()
