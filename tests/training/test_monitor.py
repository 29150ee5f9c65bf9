import json

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from video_files import moving_frames

from diffusion.data.transforms import to_float
from diffusion.data.video.clip import read_frames
from diffusion.data.video.video_reader import VideoReader
from diffusion.training.monitor import Monitor
from diffusion.utils.errors import UserError


@pytest.fixture
def monitored(tmp_path):
    """monitored(step) -> a Monitor of one folder; all are closed in the end."""
    monitors = []

    def make(step=0):
        monitors.append(Monitor(tmp_path / "run", step))
        return monitors[-1]

    yield make
    for monitor in monitors:
        monitor.close()


def lines(tmp_path):
    return [json.loads(line) for line in (tmp_path / "run" / "scalars.jsonl").open()]


def board(tmp_path):
    """What TensorBoard shows."""
    accumulator = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    return accumulator.Reload()


def record(monitor, steps, value):
    for step in steps:
        monitor.scalars(step, {"loss": value + step, "lr": 1e-8})


def test_scalars_stand_in_the_file_and_on_the_board(monitored, tmp_path):
    loss = torch.tensor(0.1).item()
    monitored().scalars(7, {"loss": loss, "validation/psnr": 30.5})
    assert lines(tmp_path) == [{"step": 7, "loss": pytest.approx(loss), "validation/psnr": 30.5}]
    assert torch.tensor(lines(tmp_path)[0]["loss"]) == torch.tensor(0.1)  # to the last bit
    (event,) = board(tmp_path).Scalars("validation/psnr")
    assert (event.step, event.value) == (7, 30.5)


def test_a_continued_run_records_no_step_twice(monitored, tmp_path):
    killed = monitored()
    record(killed, [2, 4, 6, 8], 100)
    killed.close()
    with (tmp_path / "run" / "scalars.jsonl").open("a") as file:
        file.write('{"step": 10, "lo')  # as a kill leaves it
    record(monitored(4), [6, 8], 200)
    assert [(r["step"], r["loss"]) for r in lines(tmp_path)] == [
        *((2, 102), (4, 104)),
        *((6, 206), (8, 208)),
    ]
    shown = [(event.step, event.value) for event in board(tmp_path).Scalars("loss")]
    assert shown == [(2, 102), (4, 104), (6, 206), (8, 208)]


def test_a_run_from_the_start_forgets_the_one_before(monitored, tmp_path):
    before = monitored()
    record(before, [0, 5], 100)
    before.close()
    record(monitored(), [0], 200)
    assert [r["loss"] for r in lines(tmp_path)] == [200]
    assert [event.value for event in board(tmp_path).Scalars("loss")] == [200]


def test_a_damaged_file_is_named(monitored, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "scalars.jsonl").write_text('{"step": 1}\n[]\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"scalars\.jsonl: line 2 holds no scalars; delete it"):
        monitored(3)


def test_pictures_and_videos_keep_their_pixels(monitored, tmp_path):
    monitor = monitored()
    pixels = moving_frames(3, 32, 48)
    video = to_float(pixels)
    monitor.pictures(20, {"clip_0": video[:, 1]})
    monitor.videos(20, {"clip_0": (video, 12.5)})
    folder = tmp_path / "run" / "validation" / "step_00000020"
    assert np.array_equal(np.asarray(Image.open(folder / "clip_0.png")), pixels[1])
    with VideoReader(folder / "clip_0.mp4") as reader:
        assert reader.info.fps == 12.5
    difference = read_frames(folder / "clip_0.mp4").astype(int) - pixels
    assert abs(difference).mean() < 3
    (event,) = board(tmp_path).Images("validation/clip_0")
    assert (event.step, event.height, event.width) == (20, 32, 48)
