"""Clips of any length: constant memory, and runs that are continued."""

import json
import signal
import time

import pytest
import torch
from forked import ForkedCommand
from video_files import encode, moving_frames

from diffusion.data.latents import load_latents
from diffusion.data.video.clip import read_frames


def peak_of_command(name: str, *arguments) -> float:
    """Of the command as a process of its own, as the system counts it."""
    process = ForkedCommand(name, *arguments, "--device", "cpu", "--dtype", "fp32")
    peak = 0
    status = f"/proc/{process.pid}/status"
    while process.poll() is None:
        with open(status) as file:
            found = [line for line in file if line.startswith("VmHWM:")]
        peak = max([peak, *(int(line.split()[1]) for line in found)])
        time.sleep(0.02)
    _, err = process.communicate()
    assert process.returncode == 0, err
    return peak * 1024 / 1e6


def test_ten_times_the_length_takes_the_same_memory(tiny_config, tmp_path):
    """Whole, the longer clip's pixels alone would take 142 MB, and its comparison as much again.

    The shorter clip is long enough to fill the pipeline of windows and steps.
    """
    peaks = []
    for frames in (24, 240):
        video = encode(tmp_path / f"{frames}.mp4", moving_frames(frames, 192, 256))
        options = ("--config", tiny_config, "--steps", 1, "--num-frames", "all")
        peaks.append(
            peak_of_command("reconstruct", video, *options, "--output-dir", tmp_path / f"{frames}")
        )
    assert peaks[1] <= 1.2 * peaks[0], peaks


def test_frames_come_out_before_all_are_read(tiny_config, commands, tmp_path, monkeypatch):
    """The order of events in one process: what is written first, and what was read until then."""
    from diffusion.app.reconstruction import reconstruction as app

    events = []
    encode_chunks, single_frames = app.encode_chunks, app.single_frames

    def reading(*args):
        for video, latents in encode_chunks(*args):
            events.append(("read", video.shape[1]))
            yield video, latents

    def writing(videos):
        for frame in single_frames(videos):
            events.append(("write", 1))
            yield frame

    monkeypatch.setattr(app, "encode_chunks", reading)
    monkeypatch.setattr(app, "single_frames", writing)
    video = encode(tmp_path / "long.mp4", moving_frames(80, 32, 32))
    options = ("--num-frames", "all", "--steps", 2, "--output-dir", tmp_path / "out")
    commands.ok("reconstruct", video, *options)
    first = next(i for i, (kind, _) in enumerate(events) if kind == "write")
    read = sum(count for kind, count in events[:first] if kind == "read")
    assert read <= 3 * 8  # two steps and the decoder: a window each
    assert sum(count for kind, count in events if kind == "read") == 80


@pytest.fixture
def long_video(tmp_path):
    return encode(tmp_path / "long.mp4", moving_frames(64, 64, 64))


def interrupted(name, arguments, folder, how) -> int:
    """Run, and break off after the second finished window -> how many were finished."""
    process = ForkedCommand(name, *arguments)
    deadline = time.monotonic() + 120
    while not (folder / "000001.safetensors").exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)
    process.send_signal(how)
    process.communicate(timeout=60)
    assert process.returncode != 0
    return len(list(folder.glob("*.safetensors")))


def test_a_killed_reconstruction_continues_to_the_same_result(tiny_config, long_video, tmp_path):
    def arguments(folder):
        options = ("--config", tiny_config, "--num-frames", "all", "--steps", "3")
        return (long_video, *options, "--dtype", "fp32", "--output-dir", tmp_path / folder)

    finished = interrupted(
        "reconstruct", arguments("a"), tmp_path / "a" / ".unfinished", signal.SIGKILL
    )
    assert finished >= 2
    again = ForkedCommand("reconstruct", *arguments("a"))
    _, err = again.communicate()
    assert again.returncode == 0
    assert f"continuing after {finished} finished windows" in err
    whole = ForkedCommand("reconstruct", *arguments("b"))
    assert whole.wait() == 0
    assert not (tmp_path / "a" / ".unfinished").exists()
    # libx264 does not always make the same file of the same frames: their measures say it all
    metrics = [json.loads((tmp_path / folder / "metrics.json").read_text()) for folder in "ab"]
    assert metrics[0]["psnr"] == metrics[1]["psnr"]
    assert metrics[0]["ssim"] == metrics[1]["ssim"]
    assert len(read_frames(tmp_path / "a" / "recon.mp4")) == 64
    a, b = (load_latents(tmp_path / folder / "latents.safetensors")[0] for folder in "ab")
    assert torch.equal(a, b)


def test_a_broken_off_decoding_continues_unless_something_changed(
    tiny_config, commands, long_video, tmp_path
):
    latents, output = tmp_path / "x.safetensors", tmp_path / "y.mp4"
    commands.ok("encode", long_video, "-o", latents)
    folder = tmp_path / ".y.mp4.unfinished"

    def decode(*options):
        options = (*options, "--steps", 3, "--dtype", "fp32", "--config", tiny_config)
        return (latents, "-o", output, *options)

    assert interrupted("decode", decode(), folder, signal.SIGINT) >= 2
    process = ForkedCommand("decode", *decode("--seed", 1))
    assert process.wait() == 0
    assert "continuing" not in process.communicate()[1]
    assert not folder.exists()
