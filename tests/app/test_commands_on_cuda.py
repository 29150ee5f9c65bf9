"""The commands on a CUDA device that is not there: the CPU's results, also when continued."""

import json

import numpy as np
import pytest
import torch
from pretend_cuda import pretend_cuda
from video_files import encode, moving_frames

from diffusion.app.reconstruction import coding
from diffusion.data.latents import load_latents
from diffusion.data.video.clip import read_frames

CUDA, STEPS = ("--device", "cuda"), ("--steps", 2)


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


def on_both(commands, folder, name, *arguments):
    """The command on a CPU and on the device that is not there, which must measure the same."""
    measured = []
    for device in ("cpu", "cuda"):
        with pretend_cuda():
            options = ("--device", device, "--output-dir", folder / device)
            commands.ok(name, *arguments, *options)
        measured.append(metrics_of(folder / device))
    names = [key for key in measured[0] if key.endswith(("psnr", "ssim"))]
    assert names
    for key in names:
        assert measured[0][key] == pytest.approx(measured[1][key], abs=1e-4), key
    assert measured[0].keys() == measured[1].keys()
    return measured[1]


def test_reconstructing(commands, clip, tmp_path):
    metrics = on_both(commands, tmp_path, "reconstruct", clip, "--steps", 2, "--seed", 1)
    assert metrics["device"] == "cuda:0"
    mine, other = (load_latents(tmp_path / x / "latents.safetensors")[0] for x in ("cpu", "cuda"))
    assert torch.allclose(mine, other, atol=2e-3)  # of float16


def test_the_halves(commands, clip, tmp_path):
    with pretend_cuda():
        commands.ok("reconstruct", clip, *CUDA, "--steps", 2, "--output-dir", tmp_path / "whole")
        commands.ok("encode", clip, *CUDA, "-o", tmp_path / "x.safetensors")
        commands.ok("decode", tmp_path / "x.safetensors", "-o", tmp_path / "y.mp4", *STEPS, *CUDA)
    whole = read_frames(tmp_path / "whole" / "recon.mp4")
    assert np.array_equal(read_frames(tmp_path / "y.mp4"), whole)


@pytest.mark.parametrize(
    ("name", "option"), [("upscale", ("--scale", 2)), ("interpolate", ("--factor", 2))]
)
def test_enlarging(commands, tmp_path, name, option):
    video = encode(tmp_path / "a.mp4", moving_frames(3, 68, 96))
    on_both(commands, tmp_path, name, video, *option, "--from-original", "--steps", 1)


def test_a_run_that_ran_out_of_memory_continues(commands, tmp_path, monkeypatch, caplog):
    """Finished latents come back from the disk, on the CPU; the rest is on the device."""
    video = encode(tmp_path / "long.mp4", moving_frames(40, 32, 32))
    keep = coding.UnfinishedRun.keep

    def too_little_memory(run, segments):
        for i, latents in enumerate(keep(run, segments)):
            if i == 3:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            yield latents

    def arguments(folder):
        return (video, *CUDA, *STEPS, "--num-frames", "all", "--output-dir", tmp_path / folder)

    caplog.set_level("INFO")
    with pretend_cuda():
        with monkeypatch.context() as patched:
            patched.setattr(coding.UnfinishedRun, "keep", too_little_memory)
            result = commands("reconstruct", *arguments("a"))
            assert result.code == 2
            assert "out of memory" in result.err  # after a bar, if the machine is slow
        assert [path.name for path in (tmp_path / "a").iterdir()] == [".unfinished"]
        commands.ok("reconstruct", *arguments("a"))
        assert "continuing after 4 finished windows" in caplog.text
        assert not (tmp_path / "a" / ".unfinished").exists()
        commands.ok("reconstruct", *arguments("b"))
    assert metrics_of(tmp_path / "a")["psnr"] == metrics_of(tmp_path / "b")["psnr"]
