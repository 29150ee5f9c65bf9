"""The training loop: one for all stages, on one or several processes."""

import logging
import math
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object, set_seed
from torch import Tensor, nn

from diffusion.data.training.batch import Batch, LatentBatch
from diffusion.models.weights import save_weights
from diffusion.training.checkpoint import (
    Background,
    Checkpoints,
    State,
    check_same_config,
    plain,
    random_state,
    set_random_state,
)
from diffusion.training.display import Display
from diffusion.training.draws import Draws
from diffusion.training.ema import Average, ema_copy
from diffusion.training.loading import fetch
from diffusion.training.optimizers import (
    DEFAULT_OPTIMIZER,
    build_optimizer,
    check_schedule,
    lr_factor,
    scaled_lr,
)
from diffusion.training.processes import (
    build_accelerator,
    check_sharding,
    gather_batch,
    map_tensors,
    sharded_like,
    whole,
)
from diffusion.training.stages.stage import Batches, Stage
from diffusion.training.stopping import StopRequest
from diffusion.training.validation import Validation
from diffusion.utils.errors import ConfigError, UserError
from diffusion.utils.files import make_folder

log = logging.getLogger(__name__)


class TrainingDiverged(UserError):
    """The loss is not a finite number."""


class StageLoss(nn.Module):
    """A stage as a module whose forward is the loss: what DDP and FSDP2 can wrap."""

    def __init__(self, stage: Stage):
        super().__init__()
        self.stage = stage

    def forward(self, batch: Batch | LatentBatch, draws: Draws) -> dict[str, Tensor]:
        return self.stage.loss(batch, draws)


class Trainer:
    """Trains `stage.parts` on `batches(step)` and leaves their moving averages in `work_dir`.

    Running it again continues after the last checkpoint with the same data and noise: both are
    functions of (seed, step).

    max_steps: updates of the weights; each takes `gradient_accumulation` batches of every process.
    auto_lr: options of `scaled_lr`, or None to take `lr` as it is.
    save_interval, keep_last, keep_every: see `Checkpoints`.
    fsdp: options of `processes.sharding`, or None for whole networks in every process.
    batch_size: clips in a batch of one process, for `auto_lr`.
    num_workers: processes that load data, for each process that trains.
    config: the whole config; a run does not continue with another one.
    """

    def __init__(
        self,
        *,
        stage: Stage,
        batches: Batches,
        work_dir: str | Path,
        max_steps: int,
        lr: float,
        auto_lr: Mapping[str, Any] | None = None,
        optimizer: Mapping[str, Any] = DEFAULT_OPTIMIZER,
        lr_scheduler: str = "cosine",
        warmup_steps: int = 100,
        gradient_accumulation: int = 1,
        gradient_clip: float = 1.0,
        ema_decay: float = 0.999,
        log_interval: int = 20,
        save_interval: int = 200,
        keep_last: int = 2,
        keep_every: int | None = None,
        num_workers: int = 2,
        fsdp: Mapping[str, Any] | None = None,
        seed: int = 0,
        batch_size: int | None = None,
        validation: Validation | None = None,
        config: Mapping[str, Any] | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        check_schedule(lr_scheduler)
        if fsdp is not None:
            check_sharding(fsdp, stage.parts, optimizer["type"])
        check_positive(lr=lr, gradient_accumulation=gradient_accumulation)
        check_positive(log_interval=log_interval, save_interval=save_interval)
        self.stage, self.batches, self.validation = stage, batches, validation
        self.batch_size = batch_size
        self.work_dir, self.config, self.seed = Path(work_dir), config, seed
        self.max_steps, self.num_workers = max_steps, num_workers
        self.lr_scheduler, self.warmup_steps = lr_scheduler, warmup_steps
        self.gradient_clip, self.ema_decay = gradient_clip, ema_decay
        self.save_interval = save_interval
        self.checkpoints = Checkpoints(self.work_dir / "checkpoints", keep_last, keep_every)
        self.accelerator = build_accelerator(
            torch.device(device),
            dtype,
            gradient_accumulation,
            fsdp,
            frozen=[child for child in stage.children() if child is not stage.parts],
        )
        self.accumulation, self.sharded = gradient_accumulation, fsdp is not None
        self.lr = lr
        if auto_lr is not None:
            self.lr = scaled_lr(lr, self.total_batch, **auto_lr)
            log.info(
                "train.auto_lr: %d clips per step make a learning rate of %.3g out of %.3g",
                *(self.total_batch, self.lr, lr),
            )
        stage.to(self.device)
        if not self.sharded:  # FSDP2 takes contiguous weights only
            to_channels_last(stage)
        self.parts: nn.ModuleDict = stage.parts
        self.optimizer = build_optimizer(optimizer, self.parts.parameters(), self.lr)
        self.display, self.saving = Display(self.work_dir, log_interval, self.is_main), Background()
        self.meter = self.display.meter
        self.step = 0
        self.average: Average | None = None

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    @property
    def total_batch(self) -> int:
        """Clips per update, over all processes."""
        if self.batch_size is None:
            raise ConfigError("train.auto_lr needs data.batch_size, the clips of a process")
        return self.batch_size * self.accelerator.num_processes * self.accumulation

    # The loop

    def run(self) -> signal.Signals | None:
        """Train to the last step; returns the signal that stopped it before, if one did."""
        if self.average is None:
            self.start()
        if self.step >= self.max_steps:
            log.info("%s: finished after step %d already", self.work_dir, self.step)
            return None
        micro_steps = range(self.step * self.accumulation, self.max_steps * self.accumulation)
        self.model.train()
        stopped = False
        with (
            StopRequest() as stop,
            self.saving,
            self.display.opened(self.step, self.max_steps),
            # an error must end the loader processes, which nothing else does
            closing(self.loaded(micro_steps)) as batches,
        ):
            while self.step < self.max_steps and not stopped:
                stopped = self.train_step(batches, stop)
                self.display.advance(self.step, self.optimizer.param_groups[0]["lr"])
                if self.validation is not None and (
                    self.validation.due(self.step) or self.step == self.max_steps
                ):
                    with self.meter.paused():
                        self.validate()
                if stopped or self.step % self.save_interval == 0 or self.step == self.max_steps:
                    self.save()
                self.saving.check()
        if not stopped:
            log.info("%s: finished after step %d", self.work_dir, self.step)
            return None
        log.info("%s: stopped after step %d; the same command continues", self.work_dir, self.step)
        return stop.received or signal.SIGTERM  # of another process

    def loaded(self, micro_steps: range) -> Iterator[Batch | LatentBatch]:
        on_gpu = self.device.type == "cuda"
        return fetch(self.batches, micro_steps, self.num_workers, pin_memory=on_gpu)

    def train_step(self, batches: Iterator[Batch | LatentBatch], stop: StopRequest) -> bool:
        """One update of the weights; whether any process was asked to stop."""
        self.set_lr()
        losses, sources = [], []
        for micro in range(self.accumulation):
            with self.meter.waiting():
                batch = next(batches).to(self.device)
            with self.accelerator.accumulate(self.model):
                terms = self.model(batch, self.draws(micro, len(batch)))
                loss = torch.stack(list(terms.values())).sum()
                self.accelerator.backward(loss)
            losses.append(torch.stack([loss, *terms.values()]).detach().float())
            sources += batch.sources
        mean = torch.stack(losses).mean(0)  # (1 + number of terms,)
        stopped, scalars = self.agree(stop.received is not None, mean, sources)
        norm = self.clip_gradients(sources)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.average.update(self.step)
        self.meter.add(
            dict(zip(("loss", *terms), scalars, strict=True)) | norm,
            clips=len(sources) * self.accelerator.num_processes,
        )
        return stopped

    def set_lr(self) -> None:
        factor = lr_factor(
            self.step,
            schedule=self.lr_scheduler,
            warmup_steps=self.warmup_steps,
            max_steps=self.max_steps,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * factor

    def draws(self, micro: int, count: int) -> Draws:
        """What this process draws for the batch that is number `micro` of this update."""
        return Draws(
            seed=self.seed,
            step=self.step * self.accumulation + micro,
            first=self.accelerator.process_index * count,
            count=count,
            device=self.device,
        )

    def agree(
        self, stop: bool, losses: Tensor, sources: Sequence[str]
    ) -> tuple[bool, Sequence[float]]:
        """Whether any process wants to stop, and the means of the losses over all of them.

        A loss that is not finite ends all processes, with the same words.
        """
        wishes = self.accelerator.reduce(torch.cat([losses.new_tensor([float(stop)]), losses]))
        stopped, *means = (wishes / self.accelerator.num_processes).tolist()
        if not all(map(math.isfinite, means)):
            mine = [] if losses.isfinite().all() else list(sources)
            raise TrainingDiverged(
                f"loss {means[0]} at step {self.step}; clips: {', '.join(gather_object(mine))}"
            )
        return stopped > 0, means

    def clip_gradients(self, sources: Sequence[str]) -> dict[str, float]:
        """Bound the norm of all gradients; what it was, as a scalar to record."""
        parameters = self.model.parameters()
        norm = whole(self.accelerator.clip_grad_norm_(parameters, self.gradient_clip)).item()
        if math.isfinite(norm):
            return {"grad_norm": norm}
        if self.accelerator.scaler is not None:
            return {}  # too large for fp16: the scaler skips this update and lowers its scale
        raise TrainingDiverged(
            f"gradient norm {norm} at step {self.step}; clips: {', '.join(gather_object(sources))}"
        )

    def validate(self) -> None:
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
            if self.config is not None and "config" in state:
                check_same_config(state["config"], self.config, self.work_dir)
            self.parts.load_state_dict(state["model"])
        network = ema_copy(self.parts)
        if state is not None:
            network.load_state_dict(state["ema"])
        loss = StageLoss(self.stage)
        self.model, self.optimizer = self.accelerator.prepare(loss, self.optimizer)
        self.average = Average(network, self.parts, self.ema_decay)
        if state is None:
            set_seed(self.seed, device_specific=True)
        else:
            self.resume(state)

    def resume(self, state: State) -> None:
        """What remains to be set once the weights are there."""
        self.step = state["step"]
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        averages = {
            i: map_tensors(partial(sharded_like, like=weights[i]), values)
            for i, values in state["optimizer"]["state"].items()
        }
        self.optimizer.load_state_dict(state["optimizer"] | {"state": averages})
        self.meter.load_state_dict(state.get("meter", {}))
        if self.accelerator.scaler is not None and state.get("scaler"):
            self.accelerator.scaler.load_state_dict(state["scaler"])
        random_states, rank = state.get("random", []), self.accelerator.process_index
        if len(random_states) == self.accelerator.num_processes:
            set_random_state(random_states[rank])
        else:  # draws of clips do not depend on them
            set_seed(self.seed + self.step, device_specific=True)
            if random_states:
                log.info(
                    "%d processes continue what %d began: a step has a batch of another size",
                    *(self.accelerator.num_processes, len(random_states)),
                )
        log.info("continuing after step %d of %s", self.step, self.work_dir)

    def save(self) -> None:
        """Take the state as it is now; write it while training goes on."""
        random_states = gather_object([random_state()])
        network = self.average.gather()
        if not (self.is_main or self.sharded):
            return
        snapshot = {
            "step": self.step,
            "model": self.parts.state_dict(),
            "ema": network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.accelerator.scaler and self.accelerator.scaler.state_dict(),
            "meter": self.meter.state_dict(),
            "random": random_states,
            "config": None if self.config is None else plain(self.config),
        }
        snapshot = map_tensors(lambda tensor: whole(tensor).to("cpu", copy=True), snapshot)
        if self.is_main:
            self.saving.start(self.write, snapshot)

    def write(self, state: State) -> None:
        """The averaged weights for inference, then the checkpoint beside them."""
        for name in self.parts:
            prefix = f"{name}."
            weights = {
                key.removeprefix(prefix): value
                for key, value in state["ema"].items()
                if key.startswith(prefix)
            }
            file = self.work_dir / f"{name}.safetensors"
            save_weights(weights, file, {"step": str(state["step"])})
        self.checkpoints.save(state["step"], state)


def check_positive(**options: float) -> None:
    for name, value in options.items():
        if not value > 0:
            raise ConfigError(f"train.{name} is {value}, but must be positive")


def to_channels_last(module: nn.Module) -> None:
    """The weights of image convolutions; videos' have no such format."""
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
