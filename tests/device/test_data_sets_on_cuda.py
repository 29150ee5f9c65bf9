"""Encoding and measuring sets of videos on a CUDA device that is not there."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
import torch
from pretend_cuda import PretendCuda, pretend_cuda
from safetensors.torch import load_file
from video_files import encode, moving_frames

PLACES = ("cpu", "cuda")


@pytest.fixture
def device() -> Iterator[PretendCuda]:
    with pretend_cuda() as device:
        yield device


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return encode(tmp_path_factory.mktemp("video") / "a.mp4", moving_frames(9, 60, 72))


def test_evaluate(device, commands, tiny_config, video, tmp_path):
    models = (f"previewer:{tiny_config}", f"vae:{tiny_config}", "bicubic")
    metrics = ("psnr", "ssim", "gradient", "flicker")
    for place in PLACES:
        options = ("--models", *models, "--metrics", *metrics, "--steps", 2, "--device", place)
        options = (*options, "--dtype", "fp32", "--output", tmp_path / place)
        commands.ok("evaluate", tiny_config, "--videos", video, *options)
    here, there = (json.loads((tmp_path / p / "results.json").read_text()) for p in PLACES)
    assert here["models"].keys() == there["models"].keys()
    for model, wanted in here["models"].items():
        assert there["models"][model]["means"] == pytest.approx(wanted["means"], rel=1e-3)


def test_prepare_latents(device, commands, tiny_config, video, tmp_path):
    extra = f"video_list = [{str(video)!r}]\n"
    config = tiny.write_config(tmp_path / "tiny.py", extra, tiny_config.parent)
    for place in PLACES:
        options = ("--num-frames", 4, "--short-edge", 32, 64, "--device", place, "--dtype", "fp32")
        commands.ok("prepare_latents", config, "--output", tmp_path / place, *options)
    here, there = (
        {path.name: load_file(path) for path in (tmp_path / place).rglob("*.safetensors")}
        for place in PLACES
    )
    assert here
    assert here.keys() == there.keys()
    for name, tensors in here.items():
        assert all(torch.equal(tensors[key], there[name][key]) for key in tensors)
