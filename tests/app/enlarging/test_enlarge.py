import json

import numpy as np
import pytest
from PIL import Image
from video_files import encode, moving_frames

from diffusion.data.video.clip import read_frames
from diffusion.data.video.video_reader import VideoReader
from diffusion.utils.labels import LABEL_HEIGHT

FILES = ["compare.mp4", "compare.png", "metrics.json", "result.mp4"]


@pytest.fixture
def enlarged(commands, tmp_path):
    def run(name, *options):
        folder = tmp_path / "out"
        result = commands.ok(name, *options, "--steps", 1, "--output-dir", folder)
        assert sorted(path.name for path in folder.iterdir()) == FILES
        return folder, json.loads((folder / "metrics.json").read_text()), result.out

    return run


def test_four_times_the_size(enlarged, clip):
    folder, metrics, out = enlarged("upscale", clip)
    assert read_frames(folder / "result.mp4").shape == (5, 4 * 34, 4 * 46, 3)
    assert (metrics["height"], metrics["width"], metrics["frames"]) == (136, 184, 5)
    assert "5 frames of 184x136" in out
    with Image.open(folder / "compare.png") as picture:
        assert picture.size == (2 * 184, LABEL_HEIGHT + 2 * 136)


def test_enlarging_is_measured_where_the_original_is_known(enlarged, tmp_path):
    video = encode(tmp_path / "a.mp4", moving_frames(3, 134, 130))
    folder, metrics, out = enlarged("upscale", video, "--scale", 2, "--from-original")
    assert read_frames(folder / "compare.mp4").shape[1:3] == (134 + LABEL_HEIGHT, 3 * 130)
    assert metrics["bicubic_psnr"] > metrics["cascade_psnr"]  # of random weights
    assert "bicubic" in out


def test_four_times_the_frames(enlarged, clip):
    folder, metrics, _ = enlarged("interpolate", clip)
    assert read_frames(folder / "result.mp4").shape[:3] == (17, 34, 46)
    assert metrics["fps"] == 100
    with VideoReader(folder / "result.mp4") as reader:
        assert reader.info.fps == 100


def test_new_frames_are_measured_where_the_original_is_known(enlarged, tmp_path):
    video = encode(tmp_path / "a.mp4", moving_frames(12, 64, 64))
    folder, metrics, _ = enlarged("interpolate", video, "--factor", 2, "--from-original")
    assert read_frames(folder / "result.mp4").shape[0] == 11  # from frames 0, 2, ..., 10
    assert metrics["fps"] == 25
    assert metrics["blended_psnr"] > metrics["repeated_psnr"]  # smooth motion
    original = read_frames(video).astype(float)
    errors = [((original[i] - original[i - 1]) ** 2).mean() for i in range(1, 11, 2)]
    expected = np.mean([10 * np.log10(255**2 / error) for error in errors])
    assert metrics["repeated_psnr"] == pytest.approx(expected, abs=0.01)  # of new frames alone
    assert read_frames(folder / "compare.mp4").shape[2] == 4 * 64


@pytest.mark.parametrize("option", [["--condition", "vae"], ["--condition", "x"]])
def test_conditions_that_do_not_fit(commands, clip, tmp_path, option):
    line = commands.refused("upscale", clip, *option, "--output-dir", tmp_path / "o")
    assert "enlarged, compressor, vae" in line
    assert not list((tmp_path / "o").iterdir())
