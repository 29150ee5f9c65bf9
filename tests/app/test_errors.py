"""What a user gets wrong: exit code 2, one line on stderr, and nothing left under a final name."""

import errno
import os
import resource
import signal
import sys
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from forked import ForkedCommand
from PIL import Image
from safetensors.torch import load_file, save_file
from video_files import encode, moving_frames

from diffusion.app.reconstruction import reconstruction as app
from diffusion.app.reconstruction.reconstruction import Reconstruction
from diffusion.config import ROOT
from diffusion.data.latents import LatentsInfo, save_latents
from diffusion.data.video.video_writer import VideoWriter
from diffusion.training.checkpoint import save_checkpoint
from diffusion.utils.cli import OUT_OF_MEMORY
from diffusion.utils.errors import UserError, VideoError
from diffusion.utils.files import make_folder, replacing, write_json

NEEDS_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="limits of the system")


@pytest.fixture
def refused(commands, tmp_path, monkeypatch):
    """refused(...) -> the line of `reconstruct`, which must leave no output at all."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        line = commands.refused("reconstruct", *arguments, "--output-dir", tmp_path / "out")
        assert files_below(tmp_path / "out") == []
        return line

    return run


def files_below(folder):
    """Every file there, hidden or not."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir())


@pytest.fixture
def video(tmp_path):
    return encode(tmp_path / "clip.mp4", moving_frames(12, 64, 64), options={"g": "1"})


# Videos


def test_no_such_video(refused):
    line = refused("no.mp4")
    assert line.startswith("recon.sh: error: no.mp4: ")
    assert "no such file" in line


def test_folder_as_video(refused, tmp_path):
    assert "is a folder that holds no pictures; pass a video file" in refused(tmp_path)


def test_empty_file(refused, tmp_path):
    (tmp_path / "empty.mp4").touch()
    assert "empty.mp4: is empty (0 bytes)" in refused(tmp_path / "empty.mp4")


def test_text_as_video(refused, tmp_path):
    (tmp_path / "notes.mp4").write_text("these are notes\n" * 100)
    line = refused(tmp_path / "notes.mp4")
    assert "notes.mp4: is not a video file that can be read" in line
    assert "mkv" in line  # what can be


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_video(refused, video):
    video.chmod(0)
    assert "clip.mp4: cannot be read (Permission denied)" in refused(video)


def test_fewer_frames_than_asked_for(refused, video):
    line = refused(video, "--num-frames", 13)
    assert "has 12 frames" in line
    assert "pass num_frames 12 or fewer" in line
    assert "start 12 is past the last one" in refused(video, "--start", 12)
    assert "pass num_frames 3 or fewer" in refused(
        video, "--start", 2, "--num-frames", 4, "--frame-stride", 4
    )


@pytest.mark.parametrize("index_first", [True, False])
@pytest.mark.parametrize("options", [[], ["--num-frames", 12], ["--num-frames", "all"]])
def test_cut_off_video(refused, tmp_path, index_first, options):
    flags = {"movflags": "faststart"} if index_first else {}
    video = encode(tmp_path / "cut.mp4", moving_frames(12, 64, 64), container_options=flags)
    video.write_bytes(video.read_bytes()[: video.stat().st_size * 2 // 3])
    assert "cut.mp4: " in refused(video, *options)


def test_no_frames(refused, tmp_path):
    video = encode(tmp_path / "none.mkv", moving_frames(3, 32, 32), codec="ffv1")
    content = video.read_bytes()
    video.write_bytes(content[: content.index(b"\x1f\x43\xb6\x75")])  # before the first cluster
    assert "none.mkv: " in refused(video)


def test_frames_too_small_to_be_padded(refused, tmp_path):
    video = encode(tmp_path / "small.mp4", moving_frames(2, 16, 64))
    line = refused(video)
    assert "64x16 pixels are too small" in line
    assert "--size 32" in line


def test_absurd_dimensions(refused, tmp_path):
    video = encode(tmp_path / "huge.mkv", moving_frames(1, 300, 300), codec="ffv1")
    content = video.read_bytes()
    for element in (b"\xb0", b"\xba"):  # PixelWidth, PixelHeight
        content = content.replace(element + b"\x82\x01\x2c", element + b"\x82\xff\xff")
    video.write_bytes(content)
    assert "huge.mkv: " in refused(video)


# Options


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--steps", "0"], "--steps: 0 is not in 1.."),
        (["--steps", "many"], "--steps: invalid whole number value: 'many'"),
        (["--steps", "1001"], "1001 sampling steps asked for; use 1 to 1000"),
        (["--num-frames", "0"], "--num-frames: 0 is not in 1.."),
        (["--num-frames", "none"], "--num-frames: invalid number of frames value: 'none'"),
        (["--size", "15"], "--size: 15 is not in 16..8192"),
        (["--size", "9000"], "--size: 9000 is not in 16..8192"),
        (["--start", "-1"], "--start: -1 is not in 0.."),
        (["--frame-stride", "0"], "--frame-stride: 0 is not in 1.."),
        (["--seed", str(2**64)], "--seed: 18446744073709551616 is not in 0.."),
        (["--sampler", "eulera"], "unknown sampler 'eulera', did you mean 'euler_a'?"),
        (["--device", "tpu"], "--device 'tpu' is unknown; use auto, cpu, cuda"),
        (["--device", "meta"], "--device 'meta' is unknown; use auto, cpu, cuda"),
        (["--device", "cuda:99"], "--device cuda:99: "),
        (["--dtype", "fp64"], "--dtype 'fp64' is unknown; use auto, fp32, bf16, fp16"),
        (["--stepz", "3"], "unrecognized arguments: --stepz 3"),
    ],
)
def test_bad_options(capsys, tiny_config, clip, tmp_path, options, said):
    tool = tiny.tool("reconstruct")
    argv = [str(clip), "--config", str(tiny_config), "--output-dir", str(tmp_path / "o"), *options]
    with pytest.raises(SystemExit) as stop:
        tool.run_command(tool.main, tool.build_parser(), argv)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert said in lines[0]
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("name", "output"), [("encode", "clip.mp4"), ("decode", "x.safetensors"), ("decode", "y.mkv")]
)
def test_outputs_have_their_suffix_so_that_no_input_is_lost(commands, tmp_path, name, output):
    (tmp_path / output).write_text("precious")
    line = commands.refused(name, tmp_path / output, "-o", tmp_path / output)
    assert f"{output}: must end in ." in line
    assert (tmp_path / output).read_text() == "precious"


# Configs


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("cascde.window=4", "unknown key 'cascde' in config tiny.py; did you mean 'cascade'?"),
        ("refiner.dpeth=4", "unknown key 'dpeth' in refiner; did you mean 'depth'?"),
        ("vae.latent_chanels=4", "in vae; did you mean 'latent_channels'?"),
        ("cascade.windw=4", "unknown key 'windw' in cascade; did you mean 'window'?"),
        ("noise.prediction_typ=epsilon", "did you mean 'prediction_type'?"),
        ("conditioning.scal=1", "unknown key 'scal' in conditioning; did you mean 'scale'?"),
        ("weights.refinr=x", "unknown key 'refinr' in weights; did you mean 'refiner'?"),
        ("reconstruct.num_frame=4", "in reconstruct; did you mean 'num_frames'?"),
        ("reconstruct.size=64", "unknown key 'size' in reconstruct"),
        ("refiner.type=VideoDIT", "unknown model 'VideoDIT' in refiner; did you mean 'VideoDiT'?"),
        ("refiner=4", "refiner lacks the key 'type'"),
        ("cascade=4", "cascade is 4, but must be a dict"),
        ("cascade.window.size=4", "--cfg-options cascade.window.size: does not fit"),
        ("refiner.hidden_size=50", "refiner: hidden size 50"),
        ("refiner.depth=deep", "refiner.depth='deep' must be a whole number"),
        ("reconstruct.num_frames=0", "reconstruct: num_frames=0 must be at least 1"),
        ("reconstruct.steps=abc", "reconstruct.steps='abc' must be a whole number"),
        ("window", "--cfg-options 'window' is not of the form key=value"),
    ],
)
def test_keys_and_values_of_the_config(refused, clip, option, said):
    assert said in refused(clip, "--cfg-options", option)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ("compresor = dict(depths=[1])", "unknown key 'compresor' in config bad.py"),
        ("vae = dict(stme=4)", "unknown key 'stme' in vae; did you mean 'stem'?"),
        ("vae = dict(", "bad.py: the config does not run: SyntaxError"),
        ("x = 1 / 0", "bad.py: the config does not run: ZeroDivisionError"),
    ],
)
def test_config_files(commands, clip, tmp_path, extra, said):
    config = tiny.write_config(tmp_path / "bad.py", extra, commands.config.parent)
    assert said in commands.refused("reconstruct", clip, config=config)


def test_no_such_config(commands, clip, tmp_path):
    config = tmp_path / "child.py"
    config.write_text("_base_ = ['no.py']")
    assert "child.py: the config does not run" in commands.refused(
        "reconstruct", clip, config=config
    )
    line = commands.refused("reconstruct", clip, config="configs/compact.py")
    assert "configs/compact.py: no such config file; see configs/" in line


# Weights


@pytest.fixture
def own_weights(tmp_path, tiny_config):
    """A config with a copy of the weights that a test may spoil."""
    folder = tmp_path / "own"
    folder.mkdir()
    for path in tiny_config.parent.glob("*.safetensors"):
        (folder / path.name).write_bytes(path.read_bytes())
    return tiny.write_config(folder / "tiny.py")


def test_missing_weights(commands, clip, own_weights):
    path = own_weights.parent / "vae.safetensors"
    path.unlink()
    line = commands.refused("reconstruct", clip, config=own_weights)
    assert f"{path}: no such weights file; check the path" in line


def test_missing_published_weights_say_what_fetches_them(commands, clip, tmp_path):
    config = tmp_path / "published.py"
    published = ROOT / "configs" / "s1024.effn-f32.py"
    config.write_text(
        f"_base_ = [{str(published)!r}]\nweights = dict(compressor='pretrained/none.safetensors')\n"
    )
    line = commands.refused("encode", clip, "-o", tmp_path / "x.safetensors", config=config)
    assert "none.safetensors: no such weights file" in line
    assert "bash pretrained/download.sh" in line


def test_weights_of_another_shape_name_the_key(commands, clip, own_weights):
    path = own_weights.parent / "refiner.safetensors"
    state = load_file(path)
    key = next(key for key in state if key.endswith("qkv.weight"))
    save_file(state | {key: state[key][:, :40].contiguous()}, path)
    line = commands.refused("reconstruct", clip, config=own_weights)
    assert f"{path}: {key} is (144, 40) but this VideoDiT needs (144, 48)" in line


def test_weights_of_another_network(commands, clip, own_weights):
    path = own_weights.parent / "refiner.safetensors"
    path.write_bytes((own_weights.parent / "vae.safetensors").read_bytes())
    assert "not the weights of this VideoDiT" in commands.refused(
        "reconstruct", clip, config=own_weights
    )


def test_damaged_weights(commands, clip, own_weights):
    path = own_weights.parent / "refiner.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    line = commands.refused("reconstruct", clip, config=own_weights)
    assert "refiner.safetensors: not a readable safetensors file" in line
    assert "fetch it again" in line


def test_weights_option(refused, clip, tmp_path):
    (tmp_path / "nothing").mkdir()
    assert "no such file or folder of weights" in refused(clip, "--weights", "absent")
    assert "holds none of compressor.safetensors" in refused(clip, "--weights", "nothing")


# Latents


def test_latents_that_cannot_be_decoded(commands, tmp_path):
    def line(path):
        output = tmp_path / "out" / "y.mp4"
        said = commands.refused("decode", path, "-o", output)
        assert not output.parent.exists() or not list(output.parent.iterdir())
        return said

    path = tmp_path / "x.safetensors"
    assert "x.safetensors: there is no such latents file" in line(path)
    path.write_text("not latents")
    assert "x.safetensors: cannot be read as latents" in line(path)
    save_file({"weight": torch.zeros(3)}, path)
    assert "does not hold latents" in line(path)

    info = LatentsInfo("other", 25.0, 64, 64, (0, 0, 64, 64))
    save_latents(path, torch.zeros(1, 16, 2, 2, 2), info)
    assert "made by 'other', not by 'tiny'; pass the --config" in line(path)
    info = LatentsInfo("tiny", 25.0, 64, 64, (0, 0, 64, 64))
    save_latents(path, torch.zeros(1, 8, 2, 2, 2), info)
    assert "has 8 channels, the model's have 16" in line(path)
    info = LatentsInfo("tiny", 25.0, 1, 64, (0, 0, 1, 64), (63, 0))
    save_latents(path, torch.zeros(1, 16, 2, 2, 2), info)
    assert "its header is damaged" in line(path)


# Places that cannot be written


@contextmanager
def files_no_larger_than(size):
    """What a full disk does to every write, without a disk: the system refuses further bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write_picture(path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    with replacing(path) as partial:
        Image.fromarray(noise).save(partial, format="png")


def write_video(path):
    with VideoWriter(path, 25) as writer:
        writer.write(np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), np.uint8))


def write_latents(path):
    info = LatentsInfo("tiny", 25.0, 64, 64, (0, 0, 64, 64))
    save_latents(path, torch.randn(1, 16, 20, 8, 8), info)


def write_metrics(path):
    write_json(path, {str(i): i for i in range(1000)})


def write_checkpoint(path):
    save_checkpoint(path, {"model": {"weight": torch.randn(100, 100)}})


@NEEDS_LINUX
@pytest.mark.parametrize(
    "write", [write_picture, write_video, write_latents, write_metrics, write_checkpoint]
)
def test_full_disk(tmp_path, write):
    path = tmp_path / "name.ext"
    write(path)
    before = path.read_bytes()
    with (
        files_no_larger_than(1000),
        pytest.raises(UserError, match=r"name\.ext: cannot be written"),
    ):
        write(path)
    assert path.read_bytes() == before
    assert files_below(tmp_path) == ["name.ext"]


@NEEDS_LINUX
@pytest.mark.parametrize("size", [0, 500, 3000])
def test_results_on_a_full_disk(commands, clip, tmp_path, monkeypatch, size):
    write = Reconstruction.write

    def on_full_disk(*args):
        with files_no_larger_than(size):
            return write(*args)

    monkeypatch.setattr(Reconstruction, "write", on_full_disk)
    folder = tmp_path / "out"
    line = commands.refused("reconstruct", clip, "--steps", 1, "--output-dir", folder)
    named = line.removeprefix("recon.sh: error: ").partition(": cannot be written")[0]
    assert named.startswith(str(folder))
    left = files_below(folder)
    assert not [name for name in left if "partial" in name or str(folder / name) == named]
    assert "metrics.json" not in left


def test_metrics_on_a_full_disk(commands, clip, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    line = commands.refused("reconstruct", clip, "--steps", 1, "--output-dir", tmp_path / "o")
    assert "metrics.json: cannot be written (No space left on device); free some space" in line
    assert not [name for name in files_below(tmp_path) if "metrics" in name]


def test_file_in_place_of_the_output_folder(commands, clip, tmp_path):
    (tmp_path / "taken").write_text("precious")
    line = commands.refused("reconstruct", clip, "--output-dir", tmp_path / "taken")
    assert "taken: the folder cannot be made (File exists); choose another" in line
    assert (tmp_path / "taken").read_text() == "precious"
    (tmp_path / "x.safetensors").mkdir()
    assert "x.safetensors: cannot be written" in commands.refused(
        "encode", clip, "-o", tmp_path / "x.safetensors"
    )
    assert files_below(tmp_path) == ["taken"]


def test_folder_without_write_permission(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(UserError, match="cannot be written to; choose another"):
        make_folder(tmp_path)


# Memory, interrupts, defects


@contextmanager
def memory_beyond_now(size):
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@NEEDS_LINUX
def test_out_of_memory_on_the_cpu(refused, video):
    with memory_beyond_now(500 * 2**20):
        line = refused(video, "--size", 2048)
    assert line == f"recon.sh: error: {OUT_OF_MEMORY}"


def test_a_size_that_cannot_fit_says_what_would(refused, video):
    line = refused(video, "--size", 8192, "--cfg-options", "cascade.memory_gb=2")
    assert "frames of 8192x8192 pixels need" in line
    assert " would fit" in line


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory.")])
def test_out_of_memory_elsewhere(refused, clip, monkeypatch, error):
    def allocate(*args, **kwargs):
        raise error

    monkeypatch.setattr("diffusion.pipelines.tiled.TiledNetworks.predict", allocate)
    line = refused(clip)
    assert "out of memory: lower --size" in line


def test_interrupt(clip, tiny_config, tmp_path):
    """Ctrl-C while sampling: no traceback, the shell's exit code, no files."""
    folder = tmp_path / "out"
    process = ForkedCommand(
        *("reconstruct", clip, "--config", tiny_config, "--output-dir", folder),
        *("--steps", "1000", "--size", "256"),
    )
    deadline = time.monotonic() + 60
    while not folder.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert files_below(folder) == []


def test_debug_shows_the_traceback(commands, tmp_path):
    with pytest.raises(VideoError, match="no such file"):
        commands("encode", tmp_path / "no.mp4", "-o", tmp_path / "x.safetensors", "--debug")


def test_defects_of_ours_are_not_hidden(commands, clip, monkeypatch):
    def defect(*args, **kwargs):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr("diffusion.pipelines.tiled.TiledNetworks.predict", defect)
    with pytest.raises(RuntimeError, match="shapes"):
        commands("reconstruct", clip)


def test_warnings_of_libraries_are_for_debugging(commands, clip, monkeypatch, tmp_path):
    encode_chunks = app.encode_chunks

    def warn(*args):
        warnings.warn("old function", FutureWarning, stacklevel=1)
        return encode_chunks(*args)

    monkeypatch.setattr(app, "encode_chunks", warn)
    options = (clip, "--steps", 1, "--output-dir", tmp_path / "o")
    assert commands.ok("reconstruct", *options).err == ""
    with pytest.warns(FutureWarning, match="old function"):
        commands.ok("reconstruct", *options, "--debug")


# Training


def test_training_errors(commands, tmp_path, tiny_config, clip):
    extra = f"""
video_list = [{str(clip)!r}]
data = dict(type="RandomClips", cache_dir={str(tmp_path / "frames")!r}, batch_size=1, size=32)
train = dict(
    stage=dict(type="CompressorStage"), loop=dict(max_steps=1), learning_rate=dict(peak=1e-3)
)
"""
    config = tiny.write_config(tmp_path / "train.py", extra, tiny_config.parent)

    def line(*options):
        return commands.refused("train", config, "--work-dir", tmp_path / "work", *options)

    assert "unknown key 'max_step' in train" in line("--cfg-options", "train.max_step=2")
    assert "did you mean 'CompressorStage'" in line(
        "--cfg-options", "train.stage.type=CompressorStag"
    )
    assert "unknown key 'weight' in train.stage" in line("--cfg-options", "train.stage.weight=1")
    assert "unknown key 'sise' in data; did you mean 'size'" in line("--cfg-options", "data.sise=2")
    assert "absent.mp4 does not exist" in line("--cfg-options", "video_list=absent.mp4")
    assert "unknown key 'dpeth' in refiner" in line("--cfg-options", "refiner.dpeth=2")
    assert "the config has no 'train'" in commands.refused("train", tiny_config)
    assert not (tmp_path / "work").exists()
