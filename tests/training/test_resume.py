"""A run that was stopped, killed or could not write goes on as if nothing had happened."""

import os
import random
import resource
import signal
import sys
import time

import pytest
import torch
from trainings import (
    Line,
    compressor_config,
    line_trainer,
    same,
    same_weights,
    scalars,
    start,
    train,
    trainer_of,
)
from video_files import encode, moving_frames

from diffusion.models.weights import read_metadata
from diffusion.training.checkpoint import load_checkpoint, save_checkpoint
from diffusion.utils.errors import ConfigError, UserError

# Intervals that are no multiples of one another: means of the loss span checkpoints.
OFTEN = ("train.saving.interval=3", "train.loop.log_interval=4", "train.loop.max_steps=24")


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return encode(tmp_path_factory.mktemp("video") / "a.mp4", moving_frames(6, 64, 96))


@pytest.fixture
def train_config(tmp_path, tiny_config, video):
    return compressor_config(tmp_path, video, tiny_config.parent)


def last_state(work_dir):
    return load_checkpoint(sorted((work_dir / "checkpoints").glob("step_*.pt"))[-1])


def steps(count):
    """`train` of a config, as `line_trainer` takes it."""
    return {"loop": {"max_steps": count}}


class Stopped(Exception):
    pass


def stop_at(trainer, step):
    """Let the trainer fail when it asks for the batch of this step."""
    batches = trainer.batches

    def stopping(asked):
        if asked == step:
            raise Stopped
        return batches(asked)

    trainer.batches = stopping
    with pytest.raises(Stopped):
        trainer.run()


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("train.optimizer={'type': 'CAME'}", "train.learning_rate.schedule=constant"),
        ("train.loop.gradient_accumulation=2",),
    ],
    ids=["AdamW", "CAME", "accumulation"],
)
def test_stopped_and_continued_is_uninterrupted(train_config, tmp_path, options):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    trainer_of(train_config, whole, *OFTEN, *options).run()
    accumulation = 2 if "accumulation" in str(options) else 1
    stop_at(trainer_of(train_config, parts, *OFTEN, *options), 14 * accumulation)
    assert last_state(parts)["step"] == 12
    torch.manual_seed(1234)  # what happens between the runs does not matter
    trainer_of(train_config, parts, *OFTEN, *options).run()
    assert same(last_state(whole), last_state(parts))
    assert same_weights(whole, parts)
    assert scalars(whole) == scalars(parts)
    assert [line["step"] for line in scalars(parts)] == [4, 8, 12, 16, 20, 24]


def test_the_first_trainers_checkpoint_continues(train_config, tmp_path):
    """checkpoint.pt in the work dir, with step, model, ema and optimizer alone."""
    options = ("train.loop.max_steps=6", "train.saving.interval=3", "train.loop.log_interval=3")
    trainer_of(train_config, tmp_path / "whole", *options).run()
    stop_at(trainer_of(train_config, tmp_path / "new", *options), 3)
    state = last_state(tmp_path / "new")
    (tmp_path / "old").mkdir()
    kept = {name: state[name] for name in ("step", "model", "ema", "optimizer")}
    save_checkpoint(tmp_path / "old" / "checkpoint.pt", kept)
    trainer_of(train_config, tmp_path / "old", *options).run()
    assert same_weights(tmp_path / "whole", tmp_path / "old")
    assert scalars(tmp_path / "old") == scalars(tmp_path / "whole")[1:]


def test_another_number_of_processes_is_said(tmp_path, caplog):
    caplog.set_level("INFO")
    line_trainer(tmp_path / "work", train=steps(2)).run()
    path = tmp_path / "work" / "checkpoints" / "step_00000002.pt"
    state = load_checkpoint(path)
    save_checkpoint(path, state | {"random": 2 * state["random"]})
    line_trainer(tmp_path / "work", train=steps(4)).run()
    assert "1 processes continue what 2 began" in caplog.text
    caplog.clear()
    line_trainer(tmp_path / "work", train=steps(6)).run()
    assert "began" not in caplog.text


def test_another_config_is_refused_and_the_old_one_goes_on(train_config, tmp_path):
    stop_at(trainer_of(train_config, tmp_path / "work"), 15)
    changed = r"\(train\.learning_rate\.peak: 0\.003 -> 0\.1\)"
    with pytest.raises(ConfigError, match=rf"work: holds .* {changed}; undo"):
        trainer_of(train_config, tmp_path / "work", "train.learning_rate.peak=0.1").run()
    # the cosine would be another one: only the length of the training may change
    with pytest.raises(
        ConfigError, match=r"schedule_steps: 30 -> 35\); set .*schedule_steps=30 fo"
    ):
        trainer_of(train_config, tmp_path / "work", "train.loop.max_steps=35").run()
    length = ("train.loop.max_steps=35", "train.learning_rate.schedule_steps=30")
    longer = trainer_of(train_config, tmp_path / "work", *length)
    longer.start()
    assert longer.step == 10
    longer.run()
    assert longer.step == 35


@pytest.fixture
def file_limit():
    """Calling it sets how large files may grow: then the disk is full, to who writes on."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_stops_the_run_which_continues_later(train_config, tmp_path, file_limit):
    whole, full = tmp_path / "whole", tmp_path / "full"
    trainer_of(train_config, whole, *OFTEN).run()
    trainer = trainer_of(train_config, full, *OFTEN)
    batches = trainer.batches

    def filling(step):
        if step == 7:
            trainer.saving.wait()
            file_limit((full / "checkpoints" / "step_00000006.pt").stat().st_size - 100)
        return batches(step)

    trainer.batches = filling
    with pytest.raises(UserError, match=r"step_00000009\.pt: cannot be written .*free some space"):
        trainer.run()
    assert (full / "checkpoints" / "latest").read_text().strip() == "step_00000006.pt"
    file_limit(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    trainer_of(train_config, full, *OFTEN).run()
    assert same_weights(whole, full)
    assert scalars(whole) == scalars(full)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_leaves(tmp_path, number):
    trainer = line_trainer(tmp_path / "work", train=steps(50))
    batches = trainer.batches

    def interrupted(step):
        if step == 7:
            os.kill(os.getpid(), number)
        return batches(step)

    trainer.batches = interrupted
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    assert trainer.run() == number
    assert trainer.checkpoints.load()["step"] == trainer.step == 8
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    line_trainer(tmp_path / "work", train=steps(50)).run()
    line_trainer(tmp_path / "whole", train=steps(50)).run()
    assert same(last_state(tmp_path / "work"), last_state(tmp_path / "whole"))


def wait_for(condition, process, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline and process.is_alive():
        time.sleep(0.01)
    assert condition()


def test_the_command_leaves_with_the_signals_code(train_config, tmp_path):
    process = start(
        train, train_config, tmp_path / "work", ("train.loop.max_steps=100000", OFTEN[0])
    )
    wait_for((tmp_path / "work" / "checkpoints" / "latest").exists, process)
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 143
    assert list((tmp_path / "work").rglob("*.partial")) == []


def stubborn(work_dir):
    """A run whose second batch never comes."""
    trainer = line_trainer(work_dir, train={"saving": {"interval": 1}})
    batches = trainer.batches

    def waiting(step):
        if step == 1:
            (work_dir / "waiting").touch()
            time.sleep(1000)
        return batches(step)

    trainer.batches = waiting
    trainer.run()


def test_the_second_ctrl_c_leaves_at_once(tmp_path):
    process = start(stubborn, tmp_path / "work")
    wait_for((tmp_path / "work" / "waiting").exists, process)
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.2)
    assert process.is_alive()
    os.kill(process.pid, signal.SIGINT)
    process.join(5)
    assert process.exitcode == 130


def diverging(work_dir):
    """As a command: the exit from within `except` keeps the error and its frames alive."""
    try:
        line_trainer(work_dir, Line(diverge=True), train={"loop": {"num_workers": 1}}).run()
    except UserError:
        sys.exit(2)


def test_an_error_ends_the_loader_processes_too(tmp_path):
    """They ignore SIGTERM, so that nothing would end them later."""
    process = start(diverging, tmp_path / "work")
    process.join(120)
    exit_code = process.exitcode
    process.kill()
    assert exit_code == 2


def steps_of_weights(work_dir):
    """Whose weights a reader finds."""
    files = [work_dir / f"{name}.safetensors" for name in ("compressor", "previewer")]
    found = [read_metadata(file)["step"] for file in files if file.exists()]
    assert len(found) in (0, 2)
    return set(found)


def survives_kills(train_config, tmp_path, kills_at_renames, random_kills, rng):
    """Kill a run again and again, then compare it with one that was left in peace."""
    options = (*OFTEN[:2], "train.loop.max_steps=120")  # the kills are over before the run is
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    peaceful = start(train, train_config, whole, options)
    peaceful.join(120)
    assert peaceful.exitcode == 0

    kills = [(number, 0.0) for number in kills_at_renames]
    kills += [(0, seconds) for seconds in random_kills]
    rng.shuffle(kills)
    done = 0
    for at_rename, seconds in kills:
        process = start(train, train_config, killed, options, at_rename)
        process.join(seconds or 60)
        if process.is_alive():
            process.kill()
            process.join()
        if process.exitcode == 0:  # it came to its end
            break
        assert process.exitcode == -signal.SIGKILL
        assert len(steps_of_weights(killed)) <= 1
        done += 1
    process = start(train, train_config, killed, options)
    process.join(120)
    assert process.exitcode == 0
    assert scalars(whole) == scalars(killed)
    assert same(last_state(whole), last_state(killed))
    assert same_weights(whole, killed)
    assert list(killed.rglob("*.partial")) == []
    return done


def test_killed_at_any_instant(train_config, tmp_path):
    """Of a save, five get their name: a record of two weights, these, the checkpoint, `latest`."""
    rng = random.Random(0)
    done = survives_kills(train_config, tmp_path, [1, 2, 3, 4, 5, 6, 8], [0.1, 0.2, 0.3], rng)
    assert done == 10


@pytest.mark.slow
def test_killed_forty_times(train_config, tmp_path):
    rng = random.Random()
    renames = [rng.randint(1, 6) for _ in range(20)]
    moments = [rng.uniform(0.02, 0.6) for _ in range(20)]
    assert survives_kills(train_config, tmp_path, renames, moments, rng) >= 10
