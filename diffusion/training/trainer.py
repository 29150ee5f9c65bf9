"""The training loop: one for all stages."""

import json
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from diffusion.data.clips import Batch, seeded
from diffusion.data.latent_cache import LatentBatch
from diffusion.models.weights import save_weights
from diffusion.training.checkpoint import load_checkpoint, save_checkpoint
from diffusion.training.ema import ema_copy, update_ema
from diffusion.training.stages import Batches, Stage
from diffusion.utils.errors import UserError
from diffusion.utils.files import make_folder

log = logging.getLogger(__name__)

OPTIMIZERS = {"AdamW": torch.optim.AdamW}


class TrainingDiverged(UserError):
    """The loss is not a finite number."""


def lr_factor(step: int, warmup_steps: int, max_steps: int, final: float = 0.02) -> float:
    """Linear warm-up, then a cosine to `final` times the learning rate."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, max_steps - warmup_steps)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class Meter:
    """Means over the steps since the last `take`, and the time they took."""

    def __init__(self):
        self._restart()

    def _restart(self) -> None:
        self.totals: dict[str, float] = {}
        self.steps, self.waited, self.begun = 0, 0.0, time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The block waits for data."""
        begun = time.perf_counter()
        yield
        self.waited += time.perf_counter() - begun

    def add(self, scalars: dict[str, float]) -> None:
        self.steps += 1
        for name, value in scalars.items():
            self.totals[name] = self.totals.get(name, 0.0) + value

    def take(self) -> dict[str, float]:
        """Means of the scalars, seconds per step, and the share of them spent on data."""
        elapsed = time.perf_counter() - self.begun
        means = {name: total / self.steps for name, total in self.totals.items()}
        means |= {"seconds": elapsed / self.steps, "data_share": self.waited / elapsed}
        self._restart()
        return means


class Trainer:
    """Trains `stage.parts` on `batches(step)` and leaves their moving averages in `work_dir`.

    Running it again continues after the last checkpoint with the same data and noise: both are
    functions of (seed, step).
    """

    def __init__(
        self,
        *,
        stage: Stage,
        batches: Batches,
        work_dir: str | Path,
        max_steps: int,
        lr: float,
        optimizer: str = "AdamW",
        weight_decay: float = 0.01,
        warmup_steps: int = 100,
        gradient_clip: float = 1.0,
        ema_decay: float = 0.999,
        log_interval: int = 20,
        save_interval: int = 200,
        seed: int = 0,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        self.stage, self.batches = stage, batches
        self.work_dir = Path(work_dir)
        self.max_steps, self.lr, self.warmup_steps = max_steps, lr, warmup_steps
        self.gradient_clip, self.ema_decay = gradient_clip, ema_decay
        self.log_interval, self.save_interval = log_interval, save_interval
        self.seed, self.device, self.dtype = seed, torch.device(device), dtype
        if optimizer not in OPTIMIZERS:
            raise UserError(f"unknown optimizer {optimizer!r}; valid are: {', '.join(OPTIMIZERS)}")
        stage.to(device, memory_format=torch.channels_last)
        self.model: nn.ModuleDict = stage.parts
        self.optimizer = OPTIMIZERS[optimizer](
            self.model.parameters(), lr=lr, weight_decay=weight_decay, betas=(0.9, 0.99)
        )
        self.step = 0
        self.ema: nn.Module | None = None

    @property
    def checkpoint(self) -> Path:
        return self.work_dir / "checkpoint.pt"

    def run(self) -> None:
        make_folder(self.work_dir)
        self.start()
        self.model.train()
        meter = Meter()
        steps = range(self.step, self.max_steps)
        with tqdm(
            steps, self.work_dir.name, total=self.max_steps, initial=self.step, dynamic_ncols=True
        ) as bar:
            for step in bar:
                with meter.waiting():
                    batch = self.batches(step)
                meter.add(self.train_step(batch))
                if self.step % self.log_interval == 0:
                    means = meter.take()
                    self.record(means)
                    bar.set_postfix(loss=f"{means['loss']:.4f}")
                if self.step % self.save_interval == 0 or self.step == self.max_steps:
                    self.save()

    def start(self) -> None:
        """Continue after the last checkpoint, or begin."""
        if self.checkpoint.exists():
            state = load_checkpoint(self.checkpoint)
            self.model.load_state_dict(state["model"])
            self.ema = ema_copy(self.model)
            self.ema.load_state_dict(state["ema"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = state["step"]
            log.info("continuing after step %d of %s", self.step, self.checkpoint)
            return
        self.stage.prepare(self.batches)
        self.ema = ema_copy(self.model)

    def train_step(self, batch: Batch | LatentBatch) -> dict[str, float]:
        word = int(seeded(self.seed, 0, self.step, 1).integers(2**62))
        generator = torch.Generator(self.device).manual_seed(word)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * lr_factor(self.step, self.warmup_steps, self.max_steps)
        batch = batch.to(self.device)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            terms = self.stage.loss(batch, generator)
        loss = torch.stack(list(terms.values())).sum()
        if not torch.isfinite(loss):
            raise TrainingDiverged(
                f"loss {loss.item()} at step {self.step}; clips: {', '.join(batch.sources)}"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.gradient_clip)
        self.optimizer.step()
        self.step += 1
        update_ema(self.ema, self.model, self.ema_decay, self.step)
        return {"loss": loss.item(), "grad_norm": norm.item()} | {
            name: term.item() for name, term in terms.items()
        }

    def record(self, means: dict[str, float]) -> None:
        line = {"step": self.step, **means, "lr": self.optimizer.param_groups[0]["lr"]}
        with (self.work_dir / "scalars.jsonl").open("a") as file:
            file.write(json.dumps({name: round(value, 6) for name, value in line.items()}) + "\n")

    def save(self) -> None:
        """The state to continue from, and beside it the averaged weights for inference."""
        save_checkpoint(
            self.checkpoint,
            {
                "step": self.step,
                "model": self.model.state_dict(),
                "ema": self.ema.state_dict(),
                "optimizer": self.optimizer.state_dict(),
            },
        )
        for name, part in self.ema.items():
            save_weights(part, self.work_dir / f"{name}.safetensors", {"step": str(self.step)})
