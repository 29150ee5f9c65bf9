"""What a training says of its steps on a GPU, which it does not ask at every one of them."""

import os
import signal
from collections import Counter

import pytest
from pretend_cuda import pretend_cuda
from trainings import Line, line_trainer, numbered, scalars

from diffusion.training.records import TrainingDiverged


def test_what_diverges_between_two_log_lines_is_named_and_not_kept(tmp_path):
    """The step and the clips are those of the first loss that is not finite."""
    train = {"loop": {"max_steps": 9, "log_interval": 8}, "saving": {"interval": 3}}
    with pretend_cuda():
        trainer = line_trainer(tmp_path, Line(diverge=True), train=train, device="cuda")
        with pytest.raises(TrainingDiverged, match=r"loss nan at step 1; clips: clip1\.mp4$"):
            trainer.run()
        assert trainer.step == 3  # where a checkpoint would have been
    assert trainer.checkpoints.steps() == []
    assert not (tmp_path / "line.safetensors").exists()
    assert not (tmp_path / "scalars.jsonl").exists()


def test_records_are_those_of_a_cpu(tmp_path):
    """Means over all the steps since the last log line, though they are read at its time only."""
    train = {"loop": {"max_steps": 7, "log_interval": 3}, "saving": {"interval": 2}}
    line_trainer(tmp_path / "cpu", train=train).run()
    with pretend_cuda():
        line_trainer(tmp_path / "cuda", train=train, device="cuda").run()
    assert scalars(tmp_path / "cuda") == scalars(tmp_path / "cpu")


def waits(work_dir, stage) -> Counter:
    train = {"loop": {"max_steps": 6, "log_interval": 100}, "saving": {"interval": 100}}
    with pretend_cuda() as device:
        trainer = line_trainer(work_dir, stage, train=train, device="cuda")
        trainer.start()
        device.stalls.clear()
        trainer.save = lambda: None
        trainer.run()
        return device.by_line()


def test_to_wait_would_be_noticed(tmp_path):
    class Impatient(Line):
        def loss(self, batch, draws):
            terms = super().loss(batch, draws)
            assert terms["error"].item() >= 0
            return terms

    patient, impatient = waits(tmp_path / "a", Line()), waits(tmp_path / "b", Impatient())
    assert patient.total() == 1  # the look at the end
    assert impatient.total() == 1 + 6


def test_a_request_to_stop_is_answered_after_the_step(tmp_path):
    """Though nobody has looked at a loss yet."""
    train = {"loop": {"max_steps": 50, "log_interval": 100}, "saving": {"interval": 100}}

    def interrupted(step):
        if step == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return numbered(step)

    with pretend_cuda():
        trainer = line_trainer(tmp_path, train=train, device="cuda")
        trainer.batches = interrupted
        assert trainer.run() == signal.SIGTERM
    assert trainer.checkpoints.load()["step"] == trainer.step == 8
