import errno
import random
import resource
import threading
import time

import numpy as np
import pytest
import torch

from diffusion.config import load_config
from diffusion.training.checkpoint import (
    Background,
    Checkpoints,
    load_checkpoint,
    random_state,
    save_checkpoint,
    set_random_state,
)
from diffusion.training.same_run import check_same_config, plain
from diffusion.training.train_options import Saving
from diffusion.utils.errors import ConfigError, UserError
from diffusion.utils.files import RECORD


def state_of(step):
    return {"step": step, "weights": torch.full((100,), float(step))}


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "checkpoints", Saving())


def latest(checkpoints):
    return (checkpoints.folder / "latest").read_text().strip()


def test_the_newest_is_found_and_pointed_to(checkpoints):
    assert checkpoints.load() is None
    for step in (5, 10, 100):
        checkpoints.save(step, state_of(step))
        assert latest(checkpoints) == checkpoints.path(step).name
        assert checkpoints.load()["step"] == step
        assert checkpoints.load()["weights"].tolist() == [step] * 100


def test_the_last_and_the_milestones_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", Saving(keep_last=2, keep_every=30))
    for step in range(10, 101, 10):
        checkpoints.save(step, state_of(step))
    assert checkpoints.steps() == [100, 90, 60, 30]


def test_a_truncated_checkpoint_names_what_can_be_used(checkpoints):
    for step in (1, 2):
        checkpoints.save(step, state_of(step))
    path = checkpoints.path(2)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"step_00000002\.pt: not a readable") as raised:
        checkpoints.load()
    assert str(raised.value).endswith("delete step_00000002.pt to continue from step_00000001.pt")
    assert path.exists()
    path.unlink()  # what it says
    assert checkpoints.load()["step"] == 1
    checkpoints.clean([])
    assert latest(checkpoints) == "step_00000001.pt"


def test_nothing_to_fall_back_to(checkpoints):
    checkpoints.save(1, state_of(1))
    checkpoints.path(1).write_text("damaged")
    with pytest.raises(UserError, match=r"step_00000001\.pt: not a readable checkpoint; delete it"):
        checkpoints.load()


def test_checkpoints_of_the_first_trainer_are_read(tmp_path):
    save_checkpoint(tmp_path / "checkpoint.pt", state_of(7))
    checkpoints = Checkpoints(tmp_path / "checkpoints", Saving())
    assert checkpoints.load()["step"] == 7
    checkpoints.save(8, state_of(8))
    assert checkpoints.load()["step"] == 8


@pytest.fixture
def small_disk():
    """No file may grow beyond 20 kB: the system's answer is that of a full disk, by its number."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_previous_checkpoint(checkpoints, small_disk):
    checkpoints.save(1, state_of(1))
    large = {"step": 2, "weights": torch.zeros(10_000)}
    with pytest.raises(UserError, match=r"step_00000002\.pt: cannot be written \(.*\); free some"):
        checkpoints.save(2, large)
    assert checkpoints.steps() == [1]
    assert latest(checkpoints) == "step_00000001.pt"
    assert checkpoints.load()["step"] == 1
    assert list(checkpoints.folder.glob(".*")) == []


def test_what_killed_writers_left_is_removed(checkpoints):
    checkpoints.save(1, state_of(1))
    left = checkpoints.folder / ".step_00000002.pt.123.partial"
    beside = checkpoints.folder.parent / ".vae.safetensors.123.partial"
    record = checkpoints.folder.parent / f".{RECORD}.123.partial"  # of names given together
    other = checkpoints.folder.parent / ".scalars.123.partial"
    for path in (left, beside, record, other):
        path.write_text("")
    checkpoints.clean(["vae.safetensors"])
    assert [path.exists() for path in (left, beside, record, other)] == [False, False, False, True]
    assert checkpoints.load()["step"] == 1


def test_jobs_run_beside_training_one_at_a_time():
    background, running, may_end = Background(), threading.Event(), threading.Event()

    def job(log):
        running.set()
        may_end.wait(10)
        log.append("ended")

    log = []
    background.start(job, log)
    assert running.wait(10)
    background.check()  # does not wait
    assert log == []
    may_end.set()
    background.start(log.append, "next")
    assert log[0] == "ended"
    background.wait()
    assert log == ["ended", "next"]


def test_errors_of_the_background_surface():
    def fail():
        raise OSError(errno.ENOSPC, "No space left on device", "a.pt")

    background = Background()
    background.start(fail)
    while not background._job.done():
        time.sleep(0.01)
    with pytest.raises(OSError, match="No space left"):
        background.check()
    background.wait()  # once is enough


def test_random_states_survive_a_checkpoint(tmp_path):
    save_checkpoint(tmp_path / "a.pt", random_state())
    draws = [(random.random(), np.random.rand(3).tolist(), torch.randn(3).tolist())]
    set_random_state(load_checkpoint(tmp_path / "a.pt"))
    draws += [(random.random(), np.random.rand(3).tolist(), torch.randn(3).tolist())]
    assert draws[0] == draws[1]


def test_another_config_is_named_key_by_key(tmp_path):
    def refused(*overrides):
        config = load_config("configs/compact.vae.py", overrides)
        with pytest.raises(ConfigError) as raised:
            check_same_config(stored, config, tmp_path)
        return str(raised.value)

    config = load_config("configs/compact.vae.py")
    save_checkpoint(tmp_path / "a.pt", plain(config))
    stored = load_checkpoint(tmp_path / "a.pt")
    check_same_config(stored, config, tmp_path)
    free = ("train.loop.log_interval=1", "train.saving.interval=9", "data.cache_dir=x")
    free = (*free, "train.compute.compile=True", "validation={'a': 1}")
    check_same_config(stored, load_config("configs/compact.vae.py", free), tmp_path)

    said = refused("train.learning_rate.peak=1.0")
    assert said.startswith(
        f"{tmp_path}: holds checkpoints of another config (train.learning_rate.peak: "
    )
    assert "-> 1.0); undo the change or choose another --work-dir" in said
    assert "train.loop.ema_decay: absent -> 0.5" in refused("train.loop.ema_decay=0.5")
    many = [f"train.loop.{name}=0.25" for name in ("seed", "gradient_clip", "ema_decay")]
    assert " and 1 more); undo" in refused(*many, "train.learning_rate.peak=1")


def test_the_length_of_a_training_is_free_but_not_that_of_its_cosine(tmp_path):
    def check(stored, *overrides):
        config = load_config("configs/compact.vae.py", overrides)
        check_same_config(plain(load_config("configs/compact.vae.py", stored)), config, tmp_path)

    with pytest.raises(ConfigError, match=r"schedule_steps: 1500 -> 9\); set .*=1500 for a train"):
        check((), "train.loop.max_steps=9")
    check((), "train.loop.max_steps=9", "train.learning_rate.schedule_steps=1500")
    check(("train.learning_rate.schedule_steps=1500", "train.loop.max_steps=9"))
    constant = ("train.learning_rate.schedule=constant",)
    check(constant, *constant, "train.loop.max_steps=9")


def test_a_checkpoint_from_before_the_rooms_continues(tmp_path):
    """Its config has flat keys, whose values stand elsewhere today."""
    config = load_config("configs/s1024.effn-f32.py")
    before = plain(config)
    before["train"] = {
        "stage": before["train"]["stage"],
        "optimizer": {"type": "CAME", "weight_decay": 0.0},
        "max_steps": 100_000,
        "lr": 2e-5,
        "auto_lr": {"rule": "sqrt", "base_batch": 256},
        "lr_scheduler": "constant",
        "warmup_steps": 1000,
        "gradient_clip": 0.01,
        "ema_decay": 0.9999,
        "log_interval": 5,
        "save_interval": 1000,
        "seed": 43,
    }
    check_same_config(before, config, tmp_path)
    before["train"]["lr"] = 1e-5
    with pytest.raises(ConfigError, match=r"\(train\.learning_rate\.peak: 1e-05 -> 2e-05\)"):
        check_same_config(before, config, tmp_path)
