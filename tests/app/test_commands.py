import json

import numpy as np
import pytest
import tiny
import torch
from commands import start_process
from PIL import Image
from video_files import encode, moving_frames, set_display_matrix

from diffusion.data.latents import load_latents
from diffusion.data.video.clip import read_frames
from diffusion.data.video.video_reader import VideoReader
from diffusion.utils.labels import LABEL_HEIGHT

FILES = [
    "compare.mp4",
    "compare.png",
    "latents.safetensors",
    "metrics.json",
    "preview.mp4",
    "recon.mp4",
]
METRICS = {
    *("psnr", "ssim", "preview_psnr", "preview_ssim", "frames", "height", "width", "fps"),
    *("latent_shape", "values_ratio", "latents_bytes", "seconds", "peak_memory_mb"),
    *("config", "weights", "steps", "sampler", "seed"),
}
STAGES = {"load", "read", "encode", "preview", "denoise", "decode", "measure", "write"}
STAGES |= {"wait", "total"}


@pytest.fixture
def reconstruct(commands, tmp_path):
    """reconstruct(video, *options) -> (folder of the results, metrics), with 2 steps."""

    def run(video, *options, folder="out", **keywords):
        output = tmp_path / folder
        options = (*options, "--output-dir", output)
        options = options if "--steps" in options else (*options, "--steps", 2)
        commands.ok("reconstruct", video, *options, **keywords)
        return output, json.loads((output / "metrics.json").read_text())

    return run


def sides(path):
    """(frames, height, width) of a video."""
    return read_frames(path).shape[:3]


def test_leaves_what_is_promised(reconstruct, clip, tiny_config):
    folder, metrics = reconstruct(clip, "--seed", 3, "--sampler", "ddim")
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert metrics.keys() >= METRICS
    assert metrics["seconds"].keys() == STAGES
    assert metrics["values_ratio"] == 1024
    assert metrics["latent_shape"] == [1, 16, 5, 2, 2]
    assert [metrics[key] for key in ("frames", "height", "width", "fps")] == [5, 34, 46, 25]
    assert [metrics[key] for key in ("steps", "sampler", "seed")] == [2, "ddim", 3]
    assert metrics["config"] == str(tiny_config)
    assert metrics["weights"]["refiner"] == str(tiny_config.parent / "refiner.safetensors")
    assert metrics["latents_bytes"] == (folder / "latents.safetensors").stat().st_size
    assert 0 < metrics["peak_memory_mb"] < 10_000
    assert load_latents(folder / "latents.safetensors")[0].shape == (1, 16, 5, 2, 2)


def test_the_pictures_stand_side_by_side(reconstruct, clip):
    folder, _ = reconstruct(clip)
    assert sides(folder / "preview.mp4") == sides(folder / "recon.mp4") == (5, 34, 46)
    assert sides(folder / "compare.mp4") == (5, 34 + LABEL_HEIGHT, 3 * 46)
    with Image.open(folder / "compare.png") as picture:
        assert picture.size == (3 * 46, LABEL_HEIGHT + 2 * 34)
        left = np.asarray(picture)[LABEL_HEIGHT : LABEL_HEIGHT + 34, :46]
    assert np.array_equal(left, read_frames(clip)[2])


def test_prints_the_quality_and_the_paths(commands, clip, tmp_path):
    result = commands.ok("reconstruct", clip, "--steps", 1, "--output-dir", tmp_path / "o")
    assert result.err == ""
    assert "without LDM" in result.out
    for name in FILES:
        assert str(tmp_path / "o" / name) in result.out


@pytest.mark.parametrize(
    ("frames", "height", "width"),
    [
        (1, 40, 40),
        (3, 33, 47),
        (2, 70, 33),  # portrait
        (17, 32, 32),  # more than one window
    ],
)
def test_any_size_and_length_comes_back(reconstruct, tmp_path, frames, height, width):
    pixels = moving_frames(frames, height, width)
    video = encode(tmp_path / "any.mp4", pixels, pix_fmt="yuv444p", rate=30)
    folder, metrics = reconstruct(video, "--num-frames", "all")
    assert sides(folder / "recon.mp4") == (frames, height, width)
    with VideoReader(folder / "recon.mp4") as reader:
        assert reader.info.fps == 30
    assert metrics["latent_shape"] == [1, 16, frames, -(-height // 32), -(-width // 32)]


def test_rotated_videos_come_back_upright(reconstruct, tmp_path):
    video = encode(tmp_path / "phone.mp4", moving_frames(2, 34, 46))
    set_display_matrix(video, 0, 1, -1, 0)
    folder, metrics = reconstruct(video)
    assert (metrics["height"], metrics["width"]) == (46, 34)
    assert sides(folder / "recon.mp4") == (2, 46, 34)


def test_same_seed_same_result(reconstruct, clip):
    results = [
        reconstruct(clip, "--seed", seed, folder=name)[0]
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    latents = [load_latents(folder / "latents.safetensors")[0] for folder in results]
    pixels = [read_frames(folder / "recon.mp4") for folder in results]
    assert torch.equal(latents[0], latents[1])
    assert torch.equal(latents[0], latents[2])  # chance comes after the compressor
    assert np.array_equal(pixels[0], pixels[1])
    assert not np.array_equal(pixels[0], pixels[2])


@pytest.mark.parametrize("sampler", ["euler_a", "ddim", "dpmpp"])
def test_samplers(reconstruct, clip, sampler):
    _, metrics = reconstruct(clip, "--sampler", sampler, "--steps", 3)
    assert metrics["sampler"] == sampler
    assert np.isfinite(metrics["psnr"])


def test_decoding_what_was_encoded_is_reconstructing(reconstruct, commands, clip, tmp_path):
    folder, _ = reconstruct(clip, "--seed", 5)
    original = tmp_path / "copy.mp4"
    original.write_bytes(clip.read_bytes())
    latents = tmp_path / "made" / "x.safetensors"
    commands.ok("encode", original, "-o", latents)
    (mine, info), (other, other_info) = map(load_latents, (latents, folder / "latents.safetensors"))
    assert torch.equal(mine, other)
    assert info == other_info
    original.unlink()
    commands.ok("decode", latents, "-o", tmp_path / "y.mp4", "--seed", 5, "--steps", 2)
    assert np.array_equal(read_frames(tmp_path / "y.mp4"), read_frames(folder / "recon.mp4"))


def test_encoding_needs_the_compressor_alone(commands, clip, tmp_path, tiny_config):
    compressor = tiny_config.parent / "compressor.safetensors"
    (tmp_path / compressor.name).write_bytes(compressor.read_bytes())
    config = tiny.write_config(tmp_path / "tiny.py")
    commands.ok("encode", clip, "-o", tmp_path / "x.safetensors", config=config)


def test_how_many_frames(reconstruct, commands, tmp_path):
    video = encode(tmp_path / "long.mp4", moving_frames(20, 32, 32))
    config = tiny.write_config(
        tmp_path / "few.py", "reconstruct = dict(num_frames=4)\n", commands.config.parent
    )

    def frames(*options, folder):
        return reconstruct(video, *options, folder=folder, config=config)[1]["frames"]

    assert frames(folder="default") == 4
    assert frames("--start", 18, folder="what is left") == 2
    assert frames("--start", 9, "--frame-stride", 5, folder="left in strides") == 3
    assert frames("--num-frames", 6, folder="given") == 6
    assert frames("--num-frames", "all", folder="all") == 20
    commands.ok("encode", video, "-o", tmp_path / "x.safetensors", config=config)
    assert load_latents(tmp_path / "x.safetensors")[0].shape[2] == 20


def test_which_frames(commands, tmp_path):
    """The latents of frames 3, 5 and 7 are those of a video that has no others."""
    pixels = moving_frames(9, 32, 32)
    lossless = {"codec": "libx264rgb", "pix_fmt": "rgb24", "options": {"crf": "0"}}
    whole = encode(tmp_path / "whole.mp4", pixels, **lossless, rate=30)
    part = encode(tmp_path / "part.mp4", pixels[3:9:2], **lossless, rate=15)
    options = ("--start", 3, "--frame-stride", 2, "--num-frames", 3)
    commands.ok("encode", whole, "-o", tmp_path / "a.safetensors", *options)
    commands.ok("encode", part, "-o", tmp_path / "b.safetensors")
    a, b = (load_latents(tmp_path / f"{name}.safetensors") for name in "ab")
    assert torch.equal(a[0], b[0])
    assert a[1] == b[1]


@pytest.mark.parametrize(
    ("options", "height", "width"),
    [
        (["--square"], 34, 34),
        (["--size", 68], 68, 92),
        (["--size", 40, "--square"], 40, 40),
    ],
)
def test_sizes(reconstruct, clip, options, height, width):
    folder, metrics = reconstruct(clip, *options)
    assert (metrics["height"], metrics["width"]) == (height, width)
    assert sides(folder / "recon.mp4") == (5, height, width)


def test_large_videos_are_made_smaller_as_the_config_says(reconstruct, commands, tmp_path):
    video = encode(tmp_path / "large.mp4", moving_frames(1, 96, 128))
    folder = commands.config.parent
    config = tiny.write_config(
        tmp_path / "small.py", "reconstruct = dict(max_short_edge=48)\n", folder
    )
    assert reconstruct(video, config=config)[1]["height"] == 48
    assert reconstruct(video, "--size", 96, config=config)[1]["height"] == 96


def test_weights_of_another_folder(reconstruct, clip, tiny_config, tmp_path):
    refiner = tiny_config.parent / "refiner.safetensors"
    (tmp_path / "trained").mkdir()
    (tmp_path / "trained" / refiner.name).write_bytes(refiner.read_bytes())
    _, metrics = reconstruct(clip, "--weights", tmp_path / "trained")
    assert metrics["weights"]["refiner"] == str(tmp_path / "trained" / refiner.name)
    assert metrics["weights"]["vae"] == str(tiny_config.parent / "vae.safetensors")


STUDENT = 'reconstruct = dict(sampler="ddim", steps=1)\n'


def test_sampler_and_steps_are_the_configs_unless_given(reconstruct, commands, clip, tmp_path):
    config = tiny.write_config(tmp_path / "student.py", STUDENT, commands.config.parent)

    def sampled(name, *options):
        folder = tmp_path / name
        commands.ok(name, clip, "--output-dir", folder, *options, config=config)
        metrics = json.loads((folder / "metrics.json").read_text())
        return metrics["sampler"], metrics["steps"]

    assert sampled("reconstruct") == ("ddim", 1)
    assert sampled("upscale", "--num-frames", 2, "--scale", 2) == ("ddim", 1)
    assert sampled("interpolate", "--num-frames", 2, "--factor", 2) == ("ddim", 1)
    given = reconstruct(clip, "--steps", 3, "--sampler", "euler", config=config)[1]
    assert (given["sampler"], given["steps"]) == ("euler", 3)


def test_a_sampler_that_cannot_follow_the_model_is_refused(commands, clip, tmp_path):
    model = ("--cfg-options", "noise.prediction_type=sample", "weights.vae=missing")
    for name in ("reconstruct", "upscale", "interpolate"):
        line = commands.refused(name, clip, "--sampler", "euler_a", *model)
        assert "cannot follow prediction_type 'sample'; use 'ddim'" in line


def test_options_change_the_config(reconstruct, clip):
    reconstruct(clip, "--cfg-options", "cascade.window=4", "cascade.tile=8", "model_id=other")


def test_half_precision(reconstruct, clip):
    assert reconstruct(clip, "--dtype", "bf16")[1]["dtype"] == "bfloat16"


def test_runs_as_a_user_runs_it(clip, tiny_config, tmp_path):
    """As a process, from another folder: its default output folder, its streams."""
    process = start_process(
        "reconstruct", clip, "--config", tiny_config, "--steps", "2", cwd=tmp_path
    )
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0
    assert err == ""
    assert sorted(path.name for path in (tmp_path / "outputs" / "clip").iterdir()) == FILES
    assert "PSNR" in out


def test_help_of_recon_sh_lists_the_options(commands):
    text = commands("reconstruct", "--help").out
    for option in ("--config", "--weights", "--output-dir", "--size", "--square", "--start"):
        assert option in text
    for option in ("--num-frames", "--frame-stride", "--steps", "--sampler", "--seed"):
        assert option in text
    for option in ("--device", "--dtype", "--debug"):
        assert option in text
