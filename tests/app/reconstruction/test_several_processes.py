"""One video by two processes, which meet over gloo as on a machine without GPUs."""

import json
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from forked import ForkedCommand, ranks_of
from video_files import encode, moving_frames

from diffusion.app.reconstruction import several_processes
from diffusion.app.reconstruction.frame_means import FrameMeans
from diffusion.app.reconstruction.several_processes import sharing
from diffusion.data.latents import LatentsWriter, load_latents
from diffusion.data.video.video_writer import VideoWriter


def run(name, *arguments, processes=1):
    """In `processes` that know of one another as torchrun tells them."""
    options = (*arguments, "--device", "cpu", "--dtype", "fp32")
    ranks = ranks_of(processes) if processes > 1 else [{}]
    started = [ForkedCommand(name, *options, environment=rank) for rank in ranks]
    outputs = [process.communicate(timeout=400) for process in started]
    for process, (_, err) in zip(started, outputs, strict=True):
        assert process.returncode == 0, err
    return "".join(out for out, _ in outputs)


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


@pytest.fixture
def as_second_process(monkeypatch):
    """Commands believe that another process writes, and must do nothing that is of no use to it."""

    @contextmanager
    def second(pipeline):
        yield False

    def useless(self, *args, **kwargs):
        raise AssertionError(f"{type(self).__name__} in a process that only helps")

    monkeypatch.setattr(several_processes, "sharing", second)
    monkeypatch.setattr("diffusion.app.opened_cascade.sharing", second)
    for kind in (VideoWriter, LatentsWriter, FrameMeans):
        monkeypatch.setattr(kind, "__init__", useless)


@pytest.mark.parametrize("name", ["reconstruct", "upscale", "interpolate"])
def test_other_processes_take_part_and_leave_nothing(
    commands, clip, tmp_path, as_second_process, name
):
    result = commands.ok(name, clip, "--steps", 1, "--output-dir", tmp_path / "out")
    assert result.out == ""
    assert list((tmp_path / "out").iterdir()) == []


def test_the_halves_in_other_processes(commands, clip, tmp_path, monkeypatch, request):
    commands.ok("encode", clip, "-o", tmp_path / "x.safetensors")
    request.getfixturevalue("as_second_process")
    assert commands.ok("encode", clip, "-o", tmp_path / "y" / "y.safetensors").out == ""
    output = tmp_path / "y" / "z.mp4"
    decoded = commands.ok("decode", tmp_path / "x.safetensors", "-o", output, "--steps", 1)
    assert decoded.out == ""
    assert list((tmp_path / "y").iterdir()) == []


@pytest.mark.parametrize(
    ("device", "asked"),
    [("cuda:1", ("nccl", torch.device("cuda:1"))), ("cpu", ("gloo", None))],
)
def test_each_process_tells_its_card(monkeypatch, device, asked):
    seen, noted = [], []

    def init(backend, device_id=None):
        seen.append((backend, device_id))

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(dist, "init_process_group", init)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "barrier", lambda: None)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    pipeline = SimpleNamespace(device=torch.device(device), spread=lambda: noted.append("spread"))
    with sharing(pipeline) as is_first:
        assert not is_first
    assert seen == [asked]
    assert noted == ["spread"]
