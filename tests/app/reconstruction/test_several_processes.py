"""One video by two processes, which meet over gloo as on a machine without GPUs."""

import json
import subprocess
import sys

import torch
from commands import ENVIRONMENT
from video_files import encode, moving_frames

from diffusion.config import ROOT
from diffusion.data.latents import load_latents


def run(name, *arguments, processes=1):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes]
    launcher = launcher if processes > 1 else []
    tool = ROOT / "tools" / f"{name}.py"
    command = [sys.executable, *launcher, tool, *arguments, "--device", "cpu", "--dtype", "fp32"]
    result = subprocess.run(
        list(map(str, command)), env=ENVIRONMENT, capture_output=True, text=True, timeout=400
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_two_processes_give_what_one_gives(tiny_config, tmp_path):
    """3 windows of 2 x 3 tiles in every step: not all rounds have work for both."""
    video = encode(tmp_path / "clip.mp4", moving_frames(18, 96, 160))
    options = ("--config", tiny_config, "--steps", 2, "--num-frames", "all")
    tiles = ("--cfg-options", "cascade.tile=8", "cascade.tile_overlap=2", "cascade.vae_tile=8")
    for count in (1, 2):
        folder = tmp_path / str(count)
        out = run(
            *("reconstruct", video, *options, "--output-dir", folder, *tiles), processes=count
        )
        assert out.count("PSNR") == 1  # one of them speaks
    one, two = tmp_path / "1", tmp_path / "2"
    assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in two.iterdir())
    a, b = (load_latents(folder / "latents.safetensors")[0] for folder in (one, two))
    assert torch.equal(a, b)
    # libx264 does not always make the same file of the same frames: their measures say it all
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (one, two)]
    for name in ("psnr", "ssim", "preview_psnr", "preview_ssim"):
        assert metrics[0][name] == metrics[1][name]
