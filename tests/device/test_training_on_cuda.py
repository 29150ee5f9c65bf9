"""Training on a CUDA device that is not there: what the CPU does, without waiting for a step."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pretend_cuda import PretendCuda, pretend_cuda
from safetensors.torch import load_file
from trainings import compressor_config, same, same_weights, scalars, trainer_of
from video_files import encode, moving_frames

from diffusion.training.checkpoint import load_checkpoint

QUIET = ("train.loop.log_interval=100", "train.saving.interval=100")
# All but Adafactor: torch's own asks for the norm of every weight, in the middle of a step.
OPTIMIZERS = ("AdamW", "Adam", "NAdam", "RAdam", "RMSprop", "SGD", "CAME", "Muon")


@pytest.fixture
def device() -> Iterator[PretendCuda]:
    with pretend_cuda() as device:
        yield device


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return encode(tmp_path_factory.mktemp("video") / "a.mp4", moving_frames(6, 64, 96))


@pytest.fixture
def train_config(tmp_path, tiny_config, video):
    return compressor_config(tmp_path, video, tiny_config.parent)


def trained(path, work_dir, *overrides, device="cuda", **options):
    trainer = trainer_of(path, work_dir, *overrides, device=device, **options)
    trainer.run()
    return trainer


def waits_of(device: PretendCuda, path, work_dir, steps: int, *overrides, **options) -> Counter:
    device.stalls.clear()
    steps = (f"train.loop.max_steps={steps}",)
    trained(path, work_dir / steps[0], *steps, *QUIET, *overrides, **options)
    return Counter(f"{stall.kind} at {stall.line}" for stall in device.stalls)


def waits_of_a_step(device: PretendCuda, path, work_dir, *overrides, **options) -> Counter:
    """Of three, to be exact: what is at the beginning and at the end does not count."""
    fewer, more = (waits_of(device, path, work_dir, n, *overrides, **options) for n in (3, 6))
    return more - fewer


def assert_same_scalars(folder: Path) -> None:
    there, here = (scalars(folder / run) for run in ("there", "here"))
    assert there == [pytest.approx(line, rel=1e-5) for line in here]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_no_step_waits_whatever_the_optimizer(device, train_config, tmp_path, optimizer):
    options = (f"train.optimizer={{'type': '{optimizer}'}}", "train.learning_rate.peak=1e-4")
    assert not waits_of_a_step(device, train_config, tmp_path, *options)


def test_no_step_waits_in_low_precision(device, train_config, tmp_path):
    assert not waits_of_a_step(device, train_config, tmp_path, dtype=torch.bfloat16)
    # whether an update in fp16 is made at all, torch's scaler asks the gradients
    waits = waits_of_a_step(device, train_config, tmp_path / "fp16", dtype=torch.float16)
    assert waits.total() == 3


def test_no_step_waits_for_its_data(device, train_config, tmp_path):
    options = ("train.loop.num_workers=1", "train.loop.gradient_accumulation=2")
    assert not waits_of_a_step(device, train_config, tmp_path, *options)


def test_a_run_is_that_of_the_cpu(device, train_config, tmp_path):
    options = ("train.loop.max_steps=12", "train.loop.log_interval=4")
    there = trained(train_config, tmp_path / "there", *options)
    trained(train_config, tmp_path / "here", *options, device="cpu")
    assert next(there.parts.parameters()).device.type == "cuda"
    for name in ("compressor.safetensors", "previewer.safetensors"):
        there, here = (load_file(tmp_path / run / name) for run in ("there", "here"))
        torch.testing.assert_close(there, here)  # convolutions take another layout on a CPU
    assert_same_scalars(tmp_path)


@pytest.mark.parametrize("optimizer", ["AdamW", "CAME", "Muon"])
def test_a_run_goes_on_as_if_it_had_not_stopped(device, train_config, tmp_path, optimizer):
    kind = f"train.optimizer={{'type': '{optimizer}'}}"
    options = (kind, "train.saving.interval=4", "train.learning_rate.schedule=constant")
    trained(train_config, tmp_path / "whole", "train.loop.max_steps=8", *options)
    for steps in (4, 8):
        trained(train_config, tmp_path / "parts", f"train.loop.max_steps={steps}", *options)
    states = [
        load_checkpoint(tmp_path / name / "checkpoints" / "step_00000008.pt")
        for name in ("whole", "parts")
    ]
    for state in states:
        state.pop("config")
    assert same(*states)
    assert same_weights(tmp_path / "whole", tmp_path / "parts")


def test_validation(device, train_config, tmp_path):
    options = (
        "train.loop.max_steps=4",
        "validation={'interval': 2, 'num_clips': 1, 'num_frames': 2, 'size': 64}",
    )
    trained(train_config, tmp_path / "there", *options)
    trained(train_config, tmp_path / "here", *options, device="cpu")
    assert_same_scalars(tmp_path)
