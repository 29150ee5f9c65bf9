import json
import os
import random
import signal
import time

import pytest
import tiny
import torch
from forked import ForkedCommand
from safetensors.torch import load_file
from video_files import encode, moving_frames

from diffusion.app.training import encode_set as app
from diffusion.config import load_config
from diffusion.data.training.latent_folder import read_index
from diffusion.data.training.random_latents import RandomLatents
from diffusion.data.transforms import to_float
from diffusion.pipelines.cascade_builder import build_cascade
from diffusion.pipelines.upscaling import Upscaler, reduce

OPTIONS = ("--num-frames", 4, "--short-edge", 32, 64, "--dtype", "fp32", "--device", "cpu")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for i in range(3):
        encode(folder / f"{i}.mp4", moving_frames(9, 48, 64, seed=i))
    encode(folder / "short.mp4", moving_frames(3, 48, 64))
    (folder / "text.mp4").write_text("broken")
    return folder


@pytest.fixture
def config(tmp_path, tiny_config, videos):
    extra = f"video_list = [{str(videos)!r}]\n"
    return tiny.write_config(tmp_path / "tiny.py", extra, tiny_config.parent)


def tensors(folder):
    """Everything encoded, by clip, wherever it lies."""
    return {
        f"{clip.source} {name}": tensor
        for clip in read_index(folder)
        for name, tensor in load_file(folder / clip.shard).items()
        if name.startswith(clip.clip)
    }


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_encodes_once_and_training_reads_it(commands, config, tmp_path, monkeypatch, videos):
    folder = tmp_path / "latents"
    prepare = ("prepare_latents", config, "--output", folder, *OPTIONS)
    result = commands.ok(*prepare, "--shard-clips", 4)
    assert "short.mp4: has 3 frames, fewer than the 4" in result.err + result.out
    assert "text.mp4: is not a video" in result.err + result.out
    index = read_index(folder)
    assert len(index) == 6
    assert {clip.source for clip in index} == {str(videos / f"{i}.mp4") for i in range(3)}
    assert len(list(folder.glob("*.safetensors"))) == 2
    made_with = json.loads((folder / "made_with.json").read_text())
    assert made_with["--num-frames"] == "4"
    assert {"weights of vae", "weights of compressor", "weights of previewer"} <= made_with.keys()
    batch = RandomLatents(folder=str(folder), batch_size=2, size=4, num_frames=3)(0)
    assert batch.target.shape == (2, 4, 3, 4, 4)
    assert batch.semantic.shape == (2, 16, 3, 1, 1)
    assert batch.base.shape == batch.target.shape

    monkeypatch.setattr(app, "encode", None)  # nothing may be encoded again
    before = tensors(folder)
    commands.ok(*prepare)
    assert same(tensors(folder), before)


def test_parts_together_are_the_whole(commands, config, tmp_path, monkeypatch):
    prepare = ("prepare_latents", config, *OPTIONS, "--output")
    commands.ok(*prepare, tmp_path / "whole")
    commands.ok(*prepare, tmp_path / "parts", "--part", "2/2")
    assert len(read_index(tmp_path / "parts")) == 2
    monkeypatch.setenv("RANK", "0")  # as torchrun does
    monkeypatch.setenv("WORLD_SIZE", "2")
    commands.ok(*prepare, tmp_path / "parts")
    assert same(tensors(tmp_path / "parts"), tensors(tmp_path / "whole"))


def test_refusals(commands, config, tmp_path, tiny_config):
    folder = tmp_path / "latents"
    prepare = ("prepare_latents", config, "--output", folder, *OPTIONS)
    commands.ok(*prepare)
    refused = commands.refused(*prepare, "--num-frames", 5)
    assert f"{folder}: was made with --num-frames 4, not 5; choose another --output" in refused
    (tmp_path / "other").mkdir()
    other = tiny.write_cascade(tmp_path / "other").parent  # the same weights, then others
    commands.ok(*prepare, "--weights", other)
    weights = other / "vae.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    assert "was made with weights of vae" in commands.refused(*prepare, "--weights", other)
    for part in ("3/2", "0/2", "half"):
        assert f"--part {part}: is not of the form i/n" in commands.refused(
            *prepare, "--part", part
        )
    assert "the least comes first" in commands.refused(*prepare, "--short-edge", 64, 32)
    without = tiny.write_config(tmp_path / "without.py", weights=tiny_config.parent)
    refused = commands.refused("prepare_latents", without, "--output", tmp_path / "x")
    assert "no 'video_list'" in refused


def test_number_formats_do_not_mix(commands, config, tmp_path, caplog):
    folder = tmp_path / "latents"
    prepare = ("prepare_latents", config, "--output", folder, *OPTIONS)
    commands.ok(*prepare)
    refused = commands.refused(*prepare, "--dtype", "bf16")
    assert f"{folder}: was made with --dtype fp32, not bf16; choose another --output" in refused
    assert not caplog.records

    file = folder / "made_with.json"  # as before the format was recorded
    told = json.loads(file.read_text())
    file.write_text(json.dumps({key: told[key] for key in told if key != "--dtype"}))
    commands.ok(*prepare, "--dtype", "bf16")
    assert f"{folder}: is older than the record of --dtype; taken for bf16" in caplog.text
    assert "was made with --dtype bf16, not fp32" in commands.refused(*prepare)


def test_a_part_of_bad_videos_does_not_end_the_others(commands, config, tmp_path, videos):
    """Who is ready first may have found nothing, while the others have not written anything."""
    prepare = ("prepare_latents", config, "--output", tmp_path / "latents", *OPTIONS)
    count = len(list(videos.iterdir()))
    last = f"{count}/{count}"  # text.mp4
    commands.ok(*prepare, "--part", last)
    commands.ok(*prepare, "--part", f"1/{count}")
    assert len(read_index(tmp_path / "latents")) == 2


def test_conditions_of_enlarged_and_stretched_clips(commands, config, tmp_path):
    """They are those of sampling; the target stays that of the clip itself."""
    pipeline = build_cascade(load_config(config))
    video = to_float(moving_frames(6, 64, 96))[None]
    own, enlarged, stretched = (app.encode(pipeline, video, kind) for kind in app.CONDITIONS)
    assert torch.equal(enlarged["target"], own["target"])
    assert torch.equal(stretched["target"], own["target"][:, :5])
    ((semantic, larger),) = Upscaler(pipeline, 4).pieces([reduce(video, 4)])
    assert torch.equal(enlarged["semantic"], semantic[0])
    assert torch.equal(enlarged["base"], pipeline.encode_vae(larger)[0])
    middle = (own["semantic"][:, 0] + own["semantic"][:, 4]) / 2
    torch.testing.assert_close(stretched["semantic"][:, 2], middle)
    assert stretched["base"].shape == stretched["target"].shape

    prepare = ("prepare_latents", config, *OPTIONS, "--num-frames", 5, "--output")
    commands.ok(*prepare, tmp_path / "own")
    commands.ok(*prepare, tmp_path / "mixed", "--enlarged", 0.5)
    own, mixed = tensors(tmp_path / "own"), tensors(tmp_path / "mixed")
    changed = {key for key in own if not torch.equal(own[key], mixed[key])}
    assert changed
    assert {key.split()[-1].split(".")[-1] for key in changed} == {"semantic", "base"}
    assert len(changed) < 2 * 6  # of some clips, not of all
    refused = commands.refused(*prepare, tmp_path / "x", "--enlarged", 0.6, "--stretched", 0.6)
    assert "shares of 0 to 1" in refused


@pytest.mark.slow
def test_killed_at_random_moments_and_continued(commands, config, tmp_path, videos):
    """Two processes at a time; what was on the disk before a kill is not encoded again."""
    for i in range(3, 24):
        encode(videos / f"{i}.mp4", moving_frames(9, 48, 64, seed=i))
    prepare = ("prepare_latents", config, "--shard-clips", 3, *OPTIONS, "--output")
    commands.ok(*prepare, tmp_path / "whole")
    folder = tmp_path / "killed"
    pieces = folder / "pieces"
    seen: dict[str, int] = {}
    chance, kills = random.Random(0), 0
    for _ in range(10):
        processes = [ForkedCommand(*prepare, folder, "--part", f"{i}/2") for i in (1, 2)]
        while not pieces.exists() or not any(pieces.iterdir()):
            if all(process.poll() is not None for process in processes):
                break
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.1))
        for process in processes:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
                kills += 1
            process.communicate()
        for piece in pieces.glob("[!.]*.safetensors"):
            changed = piece.stat().st_mtime_ns
            assert seen.setdefault(piece.name, changed) == changed
    assert kills >= 5
    for part in ("1/2", "2/2"):
        commands.ok(*prepare, folder, "--part", part)
    wanted, got = tensors(tmp_path / "whole"), tensors(folder)
    assert got.keys() == wanted.keys()
    # not to the bit: this process may compute with another number of threads
    assert all(torch.allclose(got[key], wanted[key], atol=0.01) for key in wanted)
    assert not any(pieces.iterdir())
    assert not list(folder.glob(".*.partial"))
