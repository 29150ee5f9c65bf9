import logging

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from video_files import encode, moving_frames

from diffusion.data.transforms import resize, to_float
from diffusion.data.video.clip import read_video
from diffusion.data.video.video_reader import VideoReader
from diffusion.evaluation.metrics.fidelity import psnr, ssim
from diffusion.training.monitor import Monitor
from diffusion.training.stages.stage import Stage
from diffusion.training.validation import Validation
from diffusion.utils.errors import UserError
from diffusion.utils.labels import LABEL_HEIGHT
from diffusion.utils.scalars import read_scalars

SIZE = {"interval": 10, "num_frames": 4, "size": 64}


class Gain(nn.Module):
    def __init__(self, gain):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))
        self.dropout = nn.Dropout(0.5)

    def forward(self, video):
        return self.dropout(self.gain * video)


class GainStage(Stage):
    """Its reconstruction is the video times a trained number."""

    def reconstruct(self, parts, video):
        return parts["net"](video)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A landscape of 6 frames, and a portrait of 3."""
    folder = tmp_path_factory.mktemp("videos")
    return [
        str(encode(folder / "wide.mp4", moving_frames(6, 64, 112), rate=10)),
        str(encode(folder / "high.mp4", moving_frames(3, 150, 70, seed=1), rate=30)),
    ]


@pytest.fixture
def monitor(tmp_path):
    monitor = Monitor(tmp_path / "run")
    yield monitor
    monitor.close()


def run(validation, monitor, gain=1.0, step=10):
    """Validate a gain that differs from that of the stage itself."""
    return validation.run(GainStage(net=Gain(0.0)), {"net": Gain(gain)}, step, monitor)


def test_it_is_due_every_interval(videos):
    validation = Validation(video_list=videos, **SIZE)
    assert [step for step in range(25) if validation.due(step)] == [0, 10, 20]


def test_the_clips_are_the_beginnings_of_the_videos(videos):
    validation = Validation(video_list=videos, **SIZE)
    wide, high = validation.clips.values()
    assert (wide.video.shape, high.video.shape) == ((3, 4, 64, 96), (3, 3, 128, 64))
    assert (wide.fps, high.fps) == (10, 30)
    original = read_video(videos[0], num_frames=4).video
    assert torch.equal(wide.video, original[..., 8:-8])  # has the size already
    resized = resize(read_video(videos[1]).video, 138, 64)
    assert torch.equal(high.video, resized[..., 5:-5, :])


def test_the_first_clips_only(videos):
    assert len(Validation(video_list=videos, num_clips=1, **SIZE).clips) == 1
    assert len(Validation(video_list=videos, num_clips=9, **SIZE).clips) == 2


def test_quality_of_the_networks_that_are_given(videos, monitor):
    validation = Validation(video_list=videos, **SIZE)
    scores = run(validation, monitor, gain=0.9)
    clips = [clip.video for clip in validation.clips.values()]
    expected = [torch.stack([f(0.9 * c, c).mean() for c in clips]).mean() for f in (psnr, ssim)]
    assert list(scores) == ["validation/psnr", "validation/ssim"]
    assert list(scores.values()) == pytest.approx([e.item() for e in expected], rel=1e-5)
    (recorded,) = read_scalars(monitor.scalars_file)
    assert recorded == {"step": 10} | {k: pytest.approx(v) for k, v in scores.items()}
    assert run(validation, monitor, gain=0.9, step=20) == scores


def test_quality_does_not_depend_on_the_number_format_of_training(videos, monitor):
    validation = Validation(video_list=videos, **SIZE)
    exact = run(validation, monitor, gain=0.9)
    with torch.autocast("cpu", torch.bfloat16):
        assert run(validation, monitor, gain=0.9) == exact


def test_networks_are_left_as_they_were(videos, monitor):
    parts = {"net": Gain(0.9)}
    parts["net"].dropout.eval()
    Validation(video_list=videos, **SIZE).run(GainStage(net=Gain(0.0)), parts, 10, monitor)
    assert (parts["net"].training, parts["net"].dropout.training) == (True, False)
    assert parts["net"].gain.grad is None


def test_original_and_result_side_by_side(videos, monitor, tmp_path):
    validation = Validation(video_list=videos, **SIZE)
    run(validation, monitor, gain=0.5, step=30)
    folder = tmp_path / "run" / "validation" / "step_00000030"
    assert sorted(p.name for p in folder.iterdir()) == [
        f"clip_{i}.{suffix}" for i in (0, 1) for suffix in ("mp4", "png")
    ]
    with Image.open(folder / "clip_0.png") as picture:
        shown = to_float(np.array(picture)[None, LABEL_HEIGHT : LABEL_HEIGHT + 64])[:, 0]
    original = validation.clips["clip_0"].video[:, 2]
    assert torch.equal(shown[..., :96], original)
    assert torch.allclose(shown[..., 96:], 0.5 * original, atol=1 / 127)
    with VideoReader(folder / "clip_1.mp4") as reader:
        assert (reader.info.fps, reader.info.width) == (30, 2 * 64)
        assert reader.count_frames() == 3


def test_its_own_list_must_be_readable(videos, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video")
    with pytest.raises(UserError, match=r"validation: .*broken\.mp4: .*put another"):
        Validation(video_list=[videos[0], str(broken)], **SIZE)


def test_of_the_training_list_what_can_be_read_serves(videos, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video")
    validation = Validation(training_list=[str(broken), *videos], num_clips=2, **SIZE)
    assert [clip.fps for clip in validation.clips.values()] == [10, 30]
    assert "no video_list of its own" in caplog.text
    assert str(broken) not in caplog.text  # the training's own reading of it names it
    assert "clip_0: 4 frames of 96x64" in caplog.text
    with pytest.raises(UserError, match="none of the videos"):
        Validation(training_list=[str(broken)], **SIZE)


def test_still_pictures(tmp_path, monitor):
    path = tmp_path / "still.png"
    Image.fromarray(moving_frames(1, 96, 70)[0]).save(path)
    validation = Validation(video_list=str(path), **SIZE)
    assert validation.clips["clip_0"].video.shape == (3, 1, 64, 64)
    assert run(validation, monitor)["validation/ssim"] == pytest.approx(1)


@pytest.mark.parametrize("wrong", [{"interval": 0}, {"num_clips": 0}, {"size": 31}])
def test_impossible_numbers_are_refused(videos, wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is .* must be at least"):
        Validation(video_list=videos, **SIZE | wrong)
