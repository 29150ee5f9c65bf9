import json

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file
from video_files import encode, moving_frames

from diffusion.config import load_config
from diffusion.data.clips import Batch
from diffusion.training.builder import build_trainer
from diffusion.training.checkpoint import load_checkpoint
from diffusion.training.ema import ema_copy, update_ema
from diffusion.training.stages import Stage
from diffusion.training.trainer import Trainer, TrainingDiverged, lr_factor
from diffusion.utils.errors import UserError

# Blocks of 8x8 pixels in place of 32x32: their principal components are found in no time.
COMPRESSOR = """
compressor.update(stem=2, latent_channels=4)
previewer.update(stem=2, latent_channels=4)
video_list = {videos!r}
data = dict(type="RandomClips", cache_dir={cache!r}, batch_size=4, size=32, num_frames=2)
train = dict(
    stage=dict(type="CompressorStage"), max_steps=30, lr=3e-3, warmup_steps=3, ema_decay=0.9,
    log_interval=5, save_interval=10,
)
"""
REFINER = """
data = dict(type="RandomLatents", folder={latents!r}, batch_size=4, size=8, num_frames=4)
train = dict(
    stage=dict(type="RefinerStage", image_share=0.3, position_range=[2, 4, 4]),
    max_steps=40, lr=3e-3, warmup_steps=2, ema_decay=0.9, log_interval=20, save_interval=40,
)
"""


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    # large enough for the pieces that prepare_latents cuts
    return encode(tmp_path_factory.mktemp("video") / "a.mp4", moving_frames(6, 64, 96))


@pytest.fixture
def train_config(tmp_path, tiny_config, video):
    """Path of a config that trains the tiny compressor and previewer."""
    extra = COMPRESSOR.format(videos=[str(video)], cache=str(tmp_path / "frames"))
    return tiny.write_config(tmp_path / "train.py", extra, tiny_config.parent)


def trainer_of(path, work_dir, *overrides):
    torch.manual_seed(0)
    return build_trainer(load_config(path, overrides), work_dir)


def scalars(work_dir):
    return [json.loads(line) for line in (work_dir / "scalars.jsonl").read_text().splitlines()]


def test_the_loss_falls(train_config, tmp_path):
    trainer_of(train_config, tmp_path / "work").run()
    losses = [line["loss"] for line in scalars(tmp_path / "work")]
    assert len(losses) == 6
    assert losses[-1] < 0.9 * losses[0]
    assert [line["step"] for line in scalars(tmp_path / "work")] == [5, 10, 15, 20, 25, 30]


def test_training_the_vae_with_its_perceptual_loss(train_config, tmp_path):
    trainer = trainer_of(
        train_config,
        tmp_path / "work",
        "train.stage={'type': 'VAEStage', 'perceptual_weight': 1.0}",
        "train.max_steps=10",
        "train.lr=0.003",
    )
    trainer.run()
    first, second = scalars(tmp_path / "work")
    assert 0 < second["perceptual"] < first["perceptual"]
    assert not any("perceptual" in name for name, _ in trainer.model.named_parameters())
    assert load_file(tmp_path / "work" / "vae.safetensors").keys() == set(
        trainer.model["vae"].state_dict()
    )


def test_stopped_and_continued_is_uninterrupted(train_config, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    trainer_of(train_config, whole).run()

    class Stopped(Exception):
        pass

    trainer = trainer_of(train_config, parts)
    batches = trainer.batches

    def stopping(step):
        if step == 17:  # after the checkpoint of step 10
            raise Stopped
        return batches(step)

    trainer.batches = stopping
    with pytest.raises(Stopped):
        trainer.run()
    assert load_checkpoint(parts / "checkpoint.pt")["step"] == 10
    trainer_of(train_config, parts).run()

    for name in ("compressor", "previewer"):
        wanted, got = (load_file(folder / f"{name}.safetensors") for folder in (whole, parts))
        assert wanted.keys() == got.keys()
        assert all(torch.equal(wanted[key], got[key]) for key in wanted)
    states = [load_checkpoint(folder / "checkpoint.pt") for folder in (whole, parts)]
    assert states[0]["step"] == states[1]["step"] == 30
    assert all(
        torch.equal(states[0]["model"][key], states[1]["model"][key]) for key in states[0]["model"]
    )
    assert scalars(whole)[-1]["loss"] == scalars(parts)[-1]["loss"]


def test_a_finished_run_does_nothing(train_config, tmp_path):
    trainer_of(train_config, tmp_path / "work", "train.max_steps=2").run()
    before = (tmp_path / "work" / "compressor.safetensors").read_bytes()
    again = trainer_of(train_config, tmp_path / "work", "train.max_steps=2")
    again.batches = None  # not asked for
    again.run()
    assert (tmp_path / "work" / "compressor.safetensors").read_bytes() == before


def test_another_seed_is_another_run(train_config, tmp_path):
    for seed in (0, 1):
        trainer_of(
            train_config, tmp_path / str(seed), f"data.seed={seed}", "train.max_steps=2"
        ).run()
    a, b = (load_file(tmp_path / seed / "compressor.safetensors") for seed in "01")
    assert any(not torch.equal(a[key], b[key]) for key in a)


def test_a_damaged_checkpoint_is_not_overwritten(train_config, tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "checkpoint.pt").write_text("damaged")
    with pytest.raises(UserError, match=r"checkpoint\.pt: not a readable checkpoint; delete it"):
        trainer_of(train_config, tmp_path / "work").run()


class Line(Stage):
    """Fits a weight to the mean of the pixels; not finite from the second batch on, if asked."""

    def __init__(self, diverge: bool = False):
        super().__init__(line=torch.nn.Linear(1, 1))
        self.diverge = diverge

    def loss(self, batch, generator):
        error = self.parts["line"](batch.video.mean().view(1)) - 1
        if self.diverge and batch.video.mean() > 0:
            error = error * float("nan")
        return {"error": error.square().mean()}


def line_trainer(tmp_path, stage, **options):
    def batches(step):
        return Batch(torch.full((1, 3, 1, 2, 2), float(step)), [f"clip{step}.mp4"])

    return Trainer(
        stage=stage,
        batches=batches,
        work_dir=tmp_path / "work",
        **{"max_steps": 5, "lr": 0.1, "warmup_steps": 1} | options,
    )


def test_a_loss_that_is_not_finite_stops_and_names_step_and_clips(tmp_path):
    trainer = line_trainer(tmp_path, Line(diverge=True))
    with pytest.raises(TrainingDiverged, match=r"loss nan at step 1; clips: clip1\.mp4"):
        trainer.run()
    assert all(p.isfinite().all() for p in trainer.model.parameters())
    assert not trainer.checkpoint.exists()


def test_unknown_optimizer(tmp_path):
    with pytest.raises(UserError, match="unknown optimizer 'AdamX'; valid are: AdamW"):
        line_trainer(tmp_path, Line(), optimizer="AdamX")


def test_the_average_follows_the_weights(tmp_path):
    trainer = line_trainer(tmp_path, Line(), ema_decay=0.5, max_steps=1)
    before = [p.clone() for p in trainer.model.parameters()]
    trainer.run()
    decay = min(0.5, 2 / 11)
    for old, mean, new in zip(
        before, trainer.ema.parameters(), trainer.model.parameters(), strict=True
    ):
        assert not torch.equal(old, new)
        torch.testing.assert_close(mean, decay * old + (1 - decay) * new.detach())


def test_the_average_forgets_the_start_and_then_moves_slowly():
    module = torch.nn.Linear(1, 1)
    ema = ema_copy(module)
    assert not any(p.requires_grad for p in ema.parameters())
    with torch.no_grad():
        module.weight.add_(1.0)
    gap = (module.weight - ema.weight).item()
    update_ema(ema, module, decay=0.99, step=10**6)
    assert (module.weight - ema.weight).item() == pytest.approx(0.99 * gap, rel=1e-4)


def test_learning_rate():
    factors = [lr_factor(step, 10, 110) for step in range(111)]
    assert factors[:10] == pytest.approx(np.arange(1, 11) / 10)
    assert factors[10] == 1
    assert factors[60] == pytest.approx(0.51)  # half-way down to 0.02
    assert factors[110] == pytest.approx(0.02)
    assert factors == sorted(factors[:10]) + sorted(factors[10:], reverse=True)


def test_from_videos_to_a_trained_cascade(commands, tmp_path, video, tiny_config):
    """The commands in the order of the recipe: latents, refiner, reconstruction with it."""
    extra = f"video_list = [{str(video)!r}]\n" + REFINER.format(latents=str(tmp_path / "latents"))
    config = tiny.write_config(tmp_path / "train.py", extra, tiny_config.parent)
    prepare = ("prepare_latents", config, "--output", tmp_path / "latents", "--num-frames", 4)
    commands.ok(*prepare, "--short-edge", 64, 64, "--dtype", "fp32")
    shards = sorted((tmp_path / "latents").glob("*"))
    assert len(shards) == 2
    assert load_file(shards[0])["target"].shape == (4, 4, 8, 12)
    written = [path.stat().st_mtime_ns for path in shards]
    commands.ok(*prepare, "--short-edge", 64, 64, "--dtype", "fp32")
    assert [path.stat().st_mtime_ns for path in shards] == written

    work_dir = tmp_path / "work"
    commands.ok("train", config, "--work-dir", work_dir, "--dtype", "fp32")
    losses = [line["loss"] for line in scalars(work_dir)]
    assert losses[-1] < losses[0]
    assert load_config(work_dir / "config.py") == load_config(config)

    output = tmp_path / "out"
    commands.ok("reconstruct", video, "--weights", work_dir, "--steps", 1, "--output-dir", output)
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["weights"]["refiner"] == str(work_dir / "refiner.safetensors")
