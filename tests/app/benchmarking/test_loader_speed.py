import sys

import numpy as np
import pytest
from video_files import encode, moving_frames

from diffusion.app.benchmarking.loader_speed import opencv_reader, read_ours
from diffusion.data.video.clip import read_frames


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("loader") / "x.mp4"
    return encode(path, moving_frames(60), options={"g": "60", "bf": "3"})


def test_both_loaders_read_the_same_frames(video):
    expected = read_frames(video)[7:28:3]
    assert np.array_equal(read_ours(video, 7, 7, 3), expected)
    theirs = opencv_reader()(video, 7, 7, 3).astype(int)
    # another conversion to RGB; neighbouring frames differ by far more
    assert np.abs(theirs - expected).mean() < 6
    assert np.abs(expected[1:].astype(int) - expected[:-1]).mean() > 12


def test_the_table(commands, video):
    result = commands.ok("benchmark_loader", video, "--strides", 2, "--clips", 2)
    assert "ratio" in result.out
    assert "has 60 frames, too few" in commands.refused("benchmark_loader", video, "--strides", 20)


def test_without_opencv(commands, video, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    refused = commands.refused("benchmark_loader", video)
    assert "needs OpenCV; run: pip install opencv-python-headless" in refused
