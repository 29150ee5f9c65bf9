"""A picture, or a folder of numbered pictures, in place of a video, in every command."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from video_files import encode, moving_frames

from diffusion.data.latents import load_latents
from diffusion.data.video.clip import read_frames, read_video
from diffusion.utils.labels import LABEL_HEIGHT

FRAMES = moving_frames(3, 34, 46)
LOSSLESS = {"codec": "libx264rgb", "pix_fmt": "rgb24", "options": {"crf": "0"}}


@pytest.fixture
def photo(tmp_path):
    Image.fromarray(FRAMES[0]).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "shot.v2"
    folder.mkdir()
    for number, frame in zip((8, 9, 10), FRAMES, strict=True):
        Image.fromarray(frame).save(folder / f"frame_{number}.png")
    return folder


def test_a_photo_is_reconstructed_as_a_video_of_one_frame(commands, photo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands.ok("reconstruct", photo, "--steps", 1)
    output = tmp_path / "outputs" / "photo"
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["frames"] == 1
    assert read_frames(output / "recon.mp4").shape == (1, 34, 46, 3)
    with Image.open(output / "compare.png") as picture:
        left = np.asarray(picture)[LABEL_HEIGHT : LABEL_HEIGHT + 34, :46]
    assert np.array_equal(left, FRAMES[0])


def test_a_folder_is_the_video_of_its_pictures(commands, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    video = encode(tmp_path / "same.mkv", FRAMES, **LOSSLESS)
    for source in (folder, video):
        commands.ok("reconstruct", source, "--steps", 1, "--start", 1)
        commands.ok("encode", source, "-o", tmp_path / f"{source.name}.safetensors")
    outputs = [tmp_path / "outputs" / name for name in ("shot.v2", "same")]
    frames = [read_frames(output / "recon.mp4") for output in outputs]
    assert frames[0].shape == (2, 34, 46, 3)
    assert np.array_equal(*frames)
    latents = [load_latents(tmp_path / f"{s.name}.safetensors") for s in (folder, video)]
    assert torch.equal(latents[0][0], latents[1][0])
    assert latents[0][1].fps == 25  # pictures do not say


def test_pictures_are_enlarged(commands, photo, folder, tmp_path):
    for source, count in ((photo, 1), (folder, 3)):
        output = tmp_path / f"out{count}"
        commands.ok("upscale", source, "--scale", 2, "--steps", 1, "--output-dir", output)
        assert read_frames(output / "result.mp4").shape == (count, 68, 92, 3)
        assert (output / "compare.png").exists()


def test_frames_between_pictures(commands, photo, folder, tmp_path):
    options = ("--factor", 2, "--steps", 1, "--output-dir", tmp_path / "out")
    commands.ok("interpolate", folder, *options)
    assert read_frames(tmp_path / "out" / "result.mp4").shape == (5, 34, 46, 3)
    refused = commands.refused("interpolate", photo, *options)
    assert f"{photo}: one frame has nothing to interpolate to" in refused
    refused = commands.refused("interpolate", folder, *options, "--factor", 4, "--from-original")
    assert "of at least 5 frames" in refused


def test_pictures_are_measured(commands, photo, folder, tmp_path, tiny_config):
    options = ("--models", "bicubic", "h264", "--metrics", "psnr", "flicker", "--device", "cpu")
    output = tmp_path / "out"
    commands.ok("evaluate", tiny_config, "--videos", photo, folder, "--output", output, *options)
    results = json.loads((output / "results.json").read_text())
    assert results["bad_videos"] == {}
    assert results["originals"].keys() == {"photo", "shot"}


def test_pictures_that_are_no_clip(commands, folder, tmp_path):
    (folder / "frame_9.png").unlink()
    (folder / "frame_11.png").write_bytes((folder / "frame_8.png").read_bytes())
    refused = commands.refused("reconstruct", folder)
    assert f"{folder}: is a folder whose 3 pictures are not numbered in equal steps" in refused
    (folder / "frame_8.png").unlink()
    Image.fromarray(moving_frames(1, 20, 20)[0]).save(folder / "frame_11.png")
    refused = commands.refused("reconstruct", folder)
    assert "frame_11.png: is 20x20, the first picture of the folder 46x34" in refused
    (folder / "frame_10.png").write_text("broken")
    refused = commands.refused("encode", folder, "-o", tmp_path / "x.safetensors")
    assert "frame_10.png: is not a picture that can be read" in refused
    assert not (tmp_path / "x.safetensors").exists()
    refused = commands.refused("reconstruct", tmp_path / "absent.png")
    assert "absent.png: there is no such file" in refused


@pytest.mark.filterwarnings("error")
def test_reading_pictures_warns_of_nothing(photo, folder):
    """Of Pillow's arrays, which cannot be written to, torch would warn."""
    clip = read_video(photo)
    assert clip.video.shape == (3, 1, 34, 46)
    assert read_video(folder, start=1).video.shape == (3, 2, 34, 46)
