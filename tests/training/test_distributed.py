"""Several processes train as one does. They meet over gloo, as on a machine without GPUs."""

import shutil
import subprocess
import sys

import pytest
import tiny
import torch
from commands import ENVIRONMENT
from safetensors.torch import load_file
from trainings import compressor_config, scalars, train_together, trainer_of
from video_files import encode, moving_frames

from diffusion.config import ROOT
from diffusion.training.checkpoint import load_checkpoint
from diffusion.utils.errors import ConfigError

# Plain descent: weights differ as gradients do. (AdamW would divide small differences by small
# gradients.)
SGD = ("train.optimizer={'type': 'SGD', 'momentum': 0.9}", "train.learning_rate.peak=0.05")
EVERY_SECOND = ("train.loop.log_interval=2", "train.saving.interval=2")
QUICK = (*SGD, *EVERY_SECOND, "train.loop.max_steps=4", "train.loop.gradient_clip=1.0")
REFINER = """
video_list = {videos!r}
data = dict(type="RandomClips", cache_dir={cache!r}, batch_size=4, size=64, num_frames=4)
train = dict(
    stage=dict(
        type="RefinerStage", image_share=0.5, position_range=[2, 4, 4], sample_posterior=True,
        init_from={refiner!r},
    ),
    loop=dict(max_steps=4, num_workers=0),
    learning_rate=dict(peak=0.05, warmup_steps=0),
)
"""


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return encode(tmp_path_factory.mktemp("video") / "a.mp4", moving_frames(6, 64, 96))


@pytest.fixture
def compressor(tmp_path, tiny_config, video):
    return compressor_config(tmp_path, video, tiny_config.parent)


@pytest.fixture
def refiner(tmp_path, tiny_config, video):
    weights = str(tiny_config.parent / "refiner.safetensors")
    extra = REFINER.format(videos=[str(video)], cache=str(tmp_path / "frames"), refiner=weights)
    return tiny.write_config(tmp_path / "refiner.py", extra, tiny_config.parent)


def succeed(processes):
    assert [process.exitcode for process in processes] == [0] * len(processes)


def assert_close(one, other):
    """The same averaged weights, but for the order of sums."""
    names = sorted(path.name for path in one.glob("*.safetensors"))
    assert names
    for name in names:
        wanted, got = load_file(one / name), load_file(other / name)
        assert wanted.keys() == got.keys()
        for key in wanted:
            torch.testing.assert_close(got[key], wanted[key], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("stage", ["compressor", "refiner"])
def test_two_processes_train_as_one(stage, request, tmp_path):
    path = request.getfixturevalue(stage)
    trainer_of(path, tmp_path / "one", *QUICK).run()
    succeed(train_together(2, path, tmp_path / "two", (*QUICK, "data.batch_size=2")))
    assert_close(tmp_path / "one", tmp_path / "two")
    states = [
        load_checkpoint(tmp_path / n / "checkpoints/step_00000004.pt") for n in ("one", "two")
    ]
    moved = load_checkpoint(tmp_path / "one/checkpoints/step_00000002.pt")["model"]
    for key, value in states[0]["model"].items():
        torch.testing.assert_close(states[1]["model"][key], value, rtol=1e-4, atol=1e-6)
    assert any(not torch.equal(moved[key], states[0]["model"][key]) for key in moved)
    assert len(states[1]["random"]) == 2
    for one, two in zip(scalars(tmp_path / "one"), scalars(tmp_path / "two"), strict=True):
        assert two == pytest.approx(one, rel=1e-4)


def test_different_data_would_be_noticed(compressor, tmp_path):
    """The comparison above can fail: both processes with the data of the first."""
    trainer_of(compressor, tmp_path / "one", *QUICK).run()
    trainer_of(compressor, tmp_path / "half", *QUICK, "data.batch_size=2").run()
    with pytest.raises(AssertionError):
        assert_close(tmp_path / "one", tmp_path / "half")


def test_accumulation_on_two_processes(compressor, tmp_path):
    options = (*QUICK, "train.loop.gradient_accumulation=2")
    trainer_of(compressor, tmp_path / "one", *options).run()
    succeed(train_together(2, compressor, tmp_path / "two", (*options, "data.batch_size=2")))
    assert_close(tmp_path / "one", tmp_path / "two")


def test_a_loss_that_diverges_on_one_process_ends_all(compressor, tmp_path):
    processes = train_together(2, compressor, tmp_path / "work", QUICK, nan_on=1)
    assert [process.exitcode for process in processes] == [1, 1]
    assert not (tmp_path / "work" / "checkpoints").exists()


SHARDED = (*QUICK, "data.batch_size=2", "train.fsdp={'wrap': ['Block']}")


def from_the_middle(source, target):
    """A work dir of a run that has come to step 2."""
    (target / "checkpoints").mkdir(parents=True)
    shutil.copy(source / "checkpoints" / "step_00000002.pt", target / "checkpoints")
    return target


def test_sharded_training_is_the_same_and_so_are_its_checkpoints(refiner, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    trainer_of(refiner, one, *QUICK).run()
    succeed(train_together(2, refiner, two, SHARDED, sharded=True))
    assert_close(one, two)

    merged = from_the_middle(two, tmp_path / "merged")
    trainer = trainer_of(refiner, merged, *QUICK)
    trainer.config = None  # another batch_size, but the same batches
    trainer.run()
    assert_close(one, merged)

    split = from_the_middle(one, tmp_path / "split")
    succeed(train_together(2, refiner, split, SHARDED, sharded=True))
    assert_close(one, split)


def test_sharded_in_half_precision_its_sums_are_not(refiner, tmp_path):
    """As DDP, which rounds what is multiplied, but no loss and no sum of gradients."""
    one, two = tmp_path / "one", tmp_path / "two"
    bf16 = {"dtype": torch.bfloat16}
    succeed(train_together(2, refiner, one, (*QUICK, "data.batch_size=2"), **bf16))
    succeed(train_together(2, refiner, two, SHARDED, sharded=True, **bf16))
    losses = [[line["loss"] for line in scalars(work_dir)] for work_dir in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
    assert any(loss != torch.tensor(loss).bfloat16().item() for loss in losses[1])
    norms = [[line["grad_norm"] for line in scalars(work_dir)] for work_dir in (one, two)]
    assert norms[1] == pytest.approx(norms[0], rel=3e-2)


def test_one_process_that_is_asked_to_stop_stops_all_at_one_step(compressor, tmp_path):
    work_dir, endless = tmp_path / "work", "train.loop.max_steps=100000"
    processes = train_together(2, compressor, work_dir, (*QUICK, endless), stop_on=1)
    assert [process.exitcode for process in processes] == [143, 143]
    assert (work_dir / "checkpoints" / "latest").read_text() == "step_00000003.pt\n"


def test_blocks_to_shard_must_be_there(refiner, tmp_path):
    with pytest.raises(
        ConfigError, match=r"train\.fsdp\.wrap: no network has a 'Blok'; did you mean"
    ):
        trainer_of(refiner, tmp_path / "work", "train.fsdp={'wrap': ['Blok']}")


def torchrun(path, work_dir, *overrides):
    command = [sys.executable, str(ROOT / "scripts" / "torchrun.py"), "--standalone"]
    command += ["--nproc-per-node=2", str(ROOT / "tools" / "train.py"), str(path)]
    command += ["--device", "cpu", "--dtype", "fp32", "--work-dir", str(work_dir)]
    command += ["--cfg-options", *QUICK, *overrides]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)


@pytest.mark.slow
def test_a_users_mistake_is_no_traceback_under_torchrun(compressor, tmp_path):
    done = torchrun(compressor, tmp_path / "two", "video_list=['absent']")
    assert done.returncode == 2
    assert "error: video_list: absent does not exist" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_torchrun(compressor, tmp_path):
    done = torchrun(compressor, tmp_path / "two", "data.batch_size=2")
    assert done.returncode == 0, done.stderr
    trainer_of(compressor, tmp_path / "one", *QUICK).run()
    assert_close(tmp_path / "one", tmp_path / "two")
