import json
from importlib import metadata

import pytest
import tiny
import torch
from safetensors.torch import load_file
from trainings import (
    REFINER,
    Line,
    compressor_config,
    line_trainer,
    scalars,
    trainer_of,
)
from video_files import encode, moving_frames

from diffusion.config import load_config
from diffusion.registry import Registry
from diffusion.training import trainer_builder
from diffusion.training.ema import ema_copy, update_ema
from diffusion.training.records import TrainingDiverged
from diffusion.utils.errors import ConfigError, UserError


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    # large enough for the pieces that prepare_latents cuts
    return encode(tmp_path_factory.mktemp("video") / "a.mp4", moving_frames(6, 64, 96))


@pytest.fixture
def train_config(tmp_path, tiny_config, video):
    """Path of a config that trains the tiny compressor and previewer."""
    return compressor_config(tmp_path, video, tiny_config.parent)


def test_the_loss_falls(train_config, tmp_path):
    trainer_of(train_config, tmp_path / "work").run()
    losses = [line["loss"] for line in scalars(tmp_path / "work")]
    assert len(losses) == 6
    assert losses[-1] < 0.95 * losses[0]
    assert [line["step"] for line in scalars(tmp_path / "work")] == [5, 10, 15, 20, 25, 30]


def test_training_the_vae_with_its_perceptual_loss(train_config, tmp_path):
    trainer = trainer_of(
        train_config,
        tmp_path / "work",
        "train.stage={'type': 'VAEStage', 'perceptual_weight': 1.0}",
        "train.loop.max_steps=10",
        "train.learning_rate.peak=0.003",
    )
    trainer.run()
    first, second = scalars(tmp_path / "work")
    assert 0 < second["perceptual"] < first["perceptual"]
    assert not any("perceptual" in name for name, _ in trainer.parts.named_parameters())
    assert load_file(tmp_path / "work" / "vae.safetensors").keys() == set(
        trainer.parts["vae"].state_dict()
    )


def test_a_finished_run_does_nothing(train_config, tmp_path):
    trainer_of(train_config, tmp_path / "work", "train.loop.max_steps=2").run()
    before = (tmp_path / "work" / "compressor.safetensors").read_bytes()
    again = trainer_of(train_config, tmp_path / "work", "train.loop.max_steps=2")
    again.batches = None  # not asked for
    again.run()
    assert (tmp_path / "work" / "compressor.safetensors").read_bytes() == before


def test_another_seed_is_another_run(train_config, tmp_path):
    for seed in (0, 1):
        trainer_of(
            train_config, tmp_path / str(seed), f"data.seed={seed}", "train.loop.max_steps=2"
        ).run()
    a, b = (load_file(tmp_path / seed / "compressor.safetensors") for seed in "01")
    assert any(not torch.equal(a[key], b[key]) for key in a)


def test_a_loss_that_is_not_finite_stops_and_names_step_and_clips(tmp_path):
    trainer = line_trainer(tmp_path / "work", Line(diverge=True))
    with pytest.raises(TrainingDiverged, match=r"loss nan at step 1; clips: clip1\.mp4"):
        trainer.run()
    assert all(p.isfinite().all() for p in trainer.parts.parameters())
    assert trainer.checkpoints.steps() == []


def test_gradients_that_are_not_finite_stop_too(tmp_path):
    class Steep(Line):
        """A finite loss whose gradient is not: d/dw sqrt(w - w) is infinite times 0."""

        def loss(self, batch, draws):
            weight = self.parts["line"].weight.sum()
            return {"error": (weight - weight.detach()).abs().sqrt()}

    trainer = line_trainer(tmp_path / "work", Steep())
    with pytest.raises(TrainingDiverged, match=r"gradient norm nan at step 0; clips: clip0\.mp4"):
        trainer.run()
    assert all(p.isfinite().all() for p in trainer.parts.parameters())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"optimizer": {"type": "AdamX"}}, "unknown optimizer 'AdamX' in train.optimizer; did"),
        ({"optimizer": {"type": "CAME", "beta": 1}}, "unknown key 'beta' in train.optimizer; did"),
        (
            {"learning_rate": {"schedule": "cosin"}},
            "train.learning_rate: schedule is 'cosin'; did you mean 'cosine'",
        ),
        ({"learning_rate": {"peak": 0.0}}, "train.learning_rate: peak is 0.0, but must be pos"),
        ({"learning_rate": {"warmup_steps": -1}}, "warmup_steps is -1, but must be at least 0"),
        ({"learning_rate": {"auto": {"rule": "cube"}}}, "rule is 'cube'; valid are: linear, sqrt"),
        ({"loop": {"log_interval": 0}}, "train.loop: log_interval is 0, but must be at least 1"),
        ({"loop": {"gradient_clip": 0}}, "train.loop: gradient_clip is 0, but must be positive"),
        ({"loop": {"ema_decay": 1.0}}, "ema_decay is 1.0, but must be at least 0 and below 1"),
        ({"saving": {"interval": 0}}, "train.saving: interval is 0, but must be at least 1"),
        ({"saving": {"keep_last": 0}}, "train.saving: keep_last is 0, but must be at least 1"),
        ({"fsdp": {}}, "train.fsdp shards over GPUs"),
        (
            {"fsdp": {}, "optimizer": {"type": "CAME"}},
            "'CAME' needs whole weights; with train.fsdp use AdamW",
        ),
    ],
)
def test_options_that_cannot_be(tmp_path, options, said):
    with pytest.raises(UserError, match=said):
        line_trainer(tmp_path / "work", train=options)


def test_half_precision_that_needs_a_gpu(tmp_path):
    with pytest.raises(UserError, match="--dtype fp16: training in it needs a GPU"):
        line_trainer(tmp_path / "work", dtype=torch.float16)


@pytest.mark.parametrize(
    ("old", "now"),
    [
        ("lr=0.1", "learning_rate.peak"),
        ("lr_scheduler=constant", "learning_rate.schedule"),
        ("auto_lr={'rule': 'sqrt'}", "learning_rate.auto"),
        ("max_steps=5", "loop.max_steps"),
        ("seed=1", "loop.seed"),
        ("save_interval=10", "saving.interval"),
        ("keep_every=10", "saving.keep_every"),
    ],
)
def test_a_key_that_moved_says_where(train_config, tmp_path, old, now):
    key = old.partition("=")[0]
    with pytest.raises(ConfigError, match=rf"^train\.{key} is now train\.{now}; change it"):
        trainer_of(train_config, tmp_path / "work", f"train.{old}")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.optimizer={'type': 'AdamW', 'decay': 1}", "'decay' in train.optimizer"),
        (
            "train.learning_rate.auto={'base': 1}",
            "'base' in train.learning_rate.auto; did you mean 'base_batch'",
        ),
        ("train.fsdp={'wrapp': []}", "'wrapp' in train.fsdp; did you mean 'wrap'"),
        ("data.rank=1", "'rank' in data"),
        ("validation={'interval': 1, 'num_clip': 1}", "'num_clip' in validation; did you mean"),
    ],
)
def test_keys_are_checked_before_anything_is_read(train_config, tmp_path, override, said):
    with pytest.raises(ConfigError, match=said):
        trainer_of(train_config, tmp_path / "work", "video_list=['absent']", override)


def test_networks_are_built_in_one_order(monkeypatch):
    """Not that of a set, which differs between processes: their first weights would too."""
    built, names = [], trainer_builder.PROVIDERS
    providers = {name: lambda config, name=name: built.append(name) for name in names}
    monkeypatch.setattr(trainer_builder, "PROVIDERS", providers)

    class Everything:
        def __init__(self, *, vae, refiner, noise, previewer, conditioning, compressor):
            pass

    trainer_builder.provide(Registry("stage", [Everything]), {"type": "Everything"}, "stage", {})
    assert built == ["compressor", "previewer", "vae", "refiner", "noise", "conditioning"]


def test_the_average_follows_the_weights(tmp_path):
    trainer = line_trainer(tmp_path / "work", train={"loop": {"ema_decay": 0.5, "max_steps": 1}})
    before = [p.clone() for p in trainer.parts.parameters()]
    trainer.run()
    decay = min(0.5, 2 / 11)
    means = trainer.average.gather().parameters()
    for old, mean, new in zip(before, means, trainer.parts.parameters(), strict=True):
        assert not torch.equal(old, new)
        torch.testing.assert_close(mean, decay * old + (1 - decay) * new.detach())


def test_the_average_forgets_the_start_and_then_moves_slowly():
    module = torch.nn.Linear(1, 1)
    ema = ema_copy(module)
    assert not any(p.requires_grad for p in ema.parameters())
    with torch.no_grad():
        module.weight.add_(1.0)
    gap = (module.weight - ema.weight).item()
    weights = [dict(m.named_parameters()) for m in (ema, module)]
    update_ema(*weights, decay=0.99, step=10**6)
    assert (module.weight - ema.weight).item() == pytest.approx(0.99 * gap, rel=1e-4)


PLAIN_DESCENT = {"optimizer": {"type": "SGD"}, "learning_rate": {"schedule": "constant"}}


class Mean(Line):
    """The gradient of the weight is the mean of the pixels."""

    def loss(self, batch, draws):
        return {"mean": (self.parts["line"].weight * batch.video.mean()).sum()}


def test_accumulated_batches_are_one_large_batch(tmp_path):
    loop = {"max_steps": 2, "gradient_accumulation": 3, "gradient_clip": 100.0}
    trainer = line_trainer(tmp_path / "work", Mean(), train={"loop": loop, **PLAIN_DESCENT})
    before = trainer.parts["line"].weight.item()
    trainer.run()
    assert trainer.step == 2
    moved = before - trainer.parts["line"].weight.item()
    assert moved == pytest.approx(0.1 * (0 + 1 + 2) / 3 + 0.1 * (3 + 4 + 5) / 3, rel=1e-5)


def test_gradients_are_clipped_and_their_norm_recorded(tmp_path):
    loop = {"max_steps": 3, "log_interval": 3, "gradient_clip": 0.5}
    trainer = line_trainer(tmp_path / "work", Mean(), train={"loop": loop, **PLAIN_DESCENT})
    before = trainer.parts["line"].weight.item()
    trainer.run()
    moved = before - trainer.parts["line"].weight.item()
    assert moved == pytest.approx(0.1 * (0 + 0.5 + 0.5), rel=1e-4)
    assert scalars(tmp_path / "work")[0]["grad_norm"] == pytest.approx((0 + 1 + 2) / 3)


def test_learning_rate_scaled_to_the_batch(tmp_path, caplog):
    caplog.set_level("INFO")
    auto = {"rule": "sqrt", "base_batch": 256}
    train = {"learning_rate": {"auto": auto}, "loop": {"gradient_accumulation": 4}}
    with pytest.raises(ConfigError, match=r"learning_rate\.auto needs data\.batch_size"):
        line_trainer(tmp_path / "work", train=train)
    trainer = line_trainer(tmp_path / "work", train=train, batch_size=1)
    assert trainer.learning_rate.peak == pytest.approx(0.1 * (4 / 256) ** 0.5)
    assert "4 clips per step make a learning rate of 0.0125 out of 0.1" in caplog.text


def test_half_precision_trains(train_config, tmp_path):
    trainer = trainer_of(
        train_config, tmp_path / "work", "train.loop.max_steps=5", dtype=torch.bfloat16
    )
    dtypes = []
    convolution = next(m for m in trainer.parts.modules() if isinstance(m, torch.nn.Conv2d))
    convolution.register_forward_hook(lambda module, args, out: dtypes.append(out.dtype))
    trainer.run()
    assert set(dtypes) == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in trainer.parts.parameters())


def test_from_videos_to_a_trained_cascade(commands, tmp_path, video, tiny_config):
    """The commands in the order of the recipe: latents, refiner, reconstruction with it."""
    extra = REFINER.format(videos=[str(video)], latents=str(tmp_path / "latents"))
    config = tiny.write_config(tmp_path / "train.py", extra, tiny_config.parent)
    prepare = ("prepare_latents", config, "--output", tmp_path / "latents", "--num-frames", 4)
    commands.ok(*prepare, "--short-edge", 64, 64, "--dtype", "fp32")
    work_dir = tmp_path / "work"
    commands.ok("train", config, "--work-dir", work_dir, "--dtype", "fp32")
    losses = [line["loss"] for line in scalars(work_dir)]
    assert losses[-1] < losses[0]
    assert load_config(work_dir / "config.py") == load_config(config)
    environment = json.loads((work_dir / "environment.json").read_text())
    assert environment["packages"]["torch"] == metadata.version("torch")

    output = tmp_path / "out"
    commands.ok("reconstruct", video, "--weights", work_dir, "--steps", 1, "--output-dir", output)
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["weights"]["refiner"] == str(work_dir / "refiner.safetensors")
