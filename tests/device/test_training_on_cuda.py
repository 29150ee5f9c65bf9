"""Training on a CUDA device that is not there: what the CPU does, without waiting for a step."""

from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from pretend_cuda import PretendCuda, pretend_cuda
from trainings import compressor_config, same, same_weights, scalars, trainer_of
from video_files import encode, moving_frames

from diffusion.training.checkpoint import load_checkpoint

QUIET = ("train.log_interval=100", "train.save_interval=100")
OPTIMIZERS = ("AdamW", "Adam", "NAdam", "RAdam", "RMSprop", "SGD", "Adafactor", "CAME", "Muon")


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
    trained(path, work_dir / f"{steps}", f"train.max_steps={steps}", *QUIET, *overrides, **options)
    return device.by_line()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_no_step_waits_whatever_the_optimizer(device, train_config, tmp_path, optimizer):
    options = (f"train.optimizer={{'type': '{optimizer}'}}", "train.lr=1e-4")
    fewer, more = (waits_of(device, train_config, tmp_path, n, *options) for n in (3, 6))
    assert more - fewer == Counter()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_no_step_waits_in_low_precision(device, train_config, tmp_path, dtype):
    fewer, more = (waits_of(device, train_config, tmp_path, n, dtype=dtype) for n in (3, 6))
    assert more - fewer == Counter()


def test_no_step_waits_for_its_data(device, train_config, tmp_path):
    options = ("train.num_workers=1", "train.gradient_accumulation=2")
    fewer, more = (waits_of(device, train_config, tmp_path, n, *options) for n in (3, 6))
    assert more - fewer == Counter()


def test_a_run_is_that_of_the_cpu(device, train_config, tmp_path):
    options = ("train.max_steps=12", "train.log_interval=4")
    there = trained(train_config, tmp_path / "there", *options)
    trained(train_config, tmp_path / "here", *options, device="cpu")
    assert next(there.parts.parameters()).device.type == "cuda"
    assert same_weights(tmp_path / "there", tmp_path / "here")
    assert scalars(tmp_path / "there") == scalars(tmp_path / "here")


@pytest.mark.parametrize("optimizer", ["AdamW", "CAME", "Muon"])
def test_a_run_goes_on_as_if_it_had_not_stopped(device, train_config, tmp_path, optimizer):
    kind = f"train.optimizer={{'type': '{optimizer}'}}"
    options = (kind, "train.save_interval=4", "train.lr_scheduler=constant")
    trained(train_config, tmp_path / "whole", "train.max_steps=8", *options)
    for steps in (4, 8):
        trained(train_config, tmp_path / "parts", f"train.max_steps={steps}", *options)
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
        "train.max_steps=4",
        "validation={'interval': 2, 'num_clips': 1, 'num_frames': 2, 'size': 64}",
    )
    trained(train_config, tmp_path / "there", *options)
    trained(train_config, tmp_path / "here", *options, device="cpu")
    assert scalars(tmp_path / "there") == scalars(tmp_path / "here")
