"""tools/evaluate.py on two small videos, with real codecs."""

import csv
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import start_process
from video_files import encode, moving_frames

from diffusion.app.evaluate import name_videos, parse_part
from diffusion.app.memory import peak_memory_mb, reset_peak_memory
from diffusion.app.prepare_latents import Part
from diffusion.data.video_io import read_video
from diffusion.evaluation.metrics import psnr
from diffusion.utils.errors import UserError

SMALL = ("--metrics", "psnr", "ssim", "flicker", "--device", "cpu", "--dtype", "fp32")
CHEAP = ("bicubic", "h264:1")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    encode(folder / "one.mp4", moving_frames(3, 70, 96))
    encode(folder / "two.mp4", moving_frames(2, 64, 64, seed=1))
    return folder


@pytest.fixture
def evaluate(commands, tiny_config, videos, tmp_path):
    """Run the command with the tiny cascade and some models; results.json."""

    def run(*options, models=CHEAP, given=videos) -> dict:
        output = tmp_path / "out"
        given = ["--videos", given, "--output", output, "--models", *models]
        commands.ok("evaluate", tiny_config, *given, "--steps", 2, *SMALL, *options)
        return json.loads((output / "results.json").read_text())

    return run


def times(folder: Path) -> dict[str, int]:
    """When each measurement was written."""
    files = (folder / "out" / "measured").glob("*/[!.]*.json")
    return {str(path): path.stat().st_mtime_ns for path in files}


def test_every_model_on_every_video(evaluate, tiny_config, videos, tmp_path):
    results = evaluate(models=["linear", *CHEAP, f"previewer:{tiny_config}", f"vae:{tiny_config}"])
    assert len(results["models"]) == 6
    folder = tmp_path / "out"
    for name, model in results["models"].items():
        assert list(model["videos"]) == ["one", "two"]
        assert model["facts"]["bits_per_pixel"] > 0
        one = model["videos"]["one"]
        assert (one["frames"], one["height"], one["width"], one["fps"]) == (3, 70, 96, 25.0)
        assert min(one["seconds"].values()) > 0
        assert one["peak_memory_mb"] > 10
        assert len(one["metrics"]["psnr"]["per_frame"]) == 3
        assert len(one["metrics"]["flicker"]["per_frame"]) == 2
        average = sum(one["metrics"]["psnr"]["per_frame"]) / 3
        assert one["metrics"]["psnr"]["mean"] == pytest.approx(average)
        two = model["videos"]["two"]["metrics"]["psnr"]["mean"]
        assert model["means"]["psnr"] == pytest.approx((average + two) / 2)
        # What is shown is what was measured, but for the video's own compression.
        shown = read_video(folder / one["reconstruction"]).video
        seen = psnr(shown, read_video(videos / "one.mp4").video).mean().item()
        assert seen == pytest.approx(average, abs=1.5) or average > 30, name
    assert results["protocol"]["name"] == "whole-16"
    assert {row["name"] for row in results["published"]} >= {"CascadeV", "StableCascade"}
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    best = results["models"]["h264:1"]["videos"]["one"]["metrics"]["ssim"]["mean"]
    assert float(rows[6]["ssim"]) == best
    assert (rows[6]["model"], rows[6]["video"]) == ("h264:1", "one")
    table = (folder / "results.md").read_text().splitlines()
    assert len({line.count("|") for line in table if line.startswith("|")}) == 1
    assert sum(line.startswith("|") for line in table) == 2 + 6 + len(results["published"])
    assert (folder / "report.html").stat().st_size > 1000


def test_a_second_run_measures_only_what_is_missing(evaluate, tmp_path):
    first = evaluate()
    before = times(tmp_path)
    (tmp_path / "out" / "measured" / "bicubic" / "two.json").unlink()
    again = evaluate(models=[*CHEAP, "bicubic:0.5"])
    after = times(tmp_path)
    redone = {Path(path).parts[-2:] for path in after if after[path] != before.get(path)}
    assert redone >= {("bicubic", "two.json")}
    assert len(redone) == 3  # and the new model's two
    assert again["models"]["bicubic"]["means"] == first["models"]["bicubic"]["means"]
    assert len(again["models"]) == len(first["models"]) + 1
    assert evaluate(models=["bicubic"])["models"].keys() == again["models"].keys()


def test_a_metric_more_is_measured_for_all(evaluate):
    evaluate()
    results = evaluate("--metrics", "psnr", "gradient")
    for model in results["models"].values():
        assert model["means"].keys() == {"psnr", "gradient"}


def test_results_of_something_else_are_not_mixed_in(
    evaluate, commands, tiny_config, videos, tmp_path
):
    evaluate()
    common = ("--videos", videos, "--output", tmp_path / "out", "--models", *CHEAP, *SMALL)
    error = commands.refused("evaluate", tiny_config, *common, "--steps", 3)
    assert "another steps" in error
    assert "--output" in error
    other = ("--protocol", "inter4k-200", "--steps", 2)
    error = commands.refused("evaluate", tiny_config, *common, *other)
    assert "named by number" in error


def test_a_broken_video_is_named_and_the_rest_goes_on(evaluate, videos, tmp_path):
    folder = tmp_path / "some"
    folder.mkdir()
    (folder / "whole.mp4").write_bytes((videos / "two.mp4").read_bytes())
    broken = folder / "broken.mp4"
    broken.write_bytes((videos / "one.mp4").read_bytes()[:300])
    results = evaluate(given=folder)
    assert list(results["bad_videos"]) == [str(broken)]
    assert all(list(model["videos"]) == ["whole"] for model in results["models"].values())
    assert "broken.mp4" in (tmp_path / "out" / "results.md").read_text()
    broken.write_bytes((videos / "one.mp4").read_bytes())  # mended
    results = evaluate(given=folder)
    assert not results["bad_videos"]
    assert all(len(model["videos"]) == 2 for model in results["models"].values())


def test_a_video_that_one_model_cannot_take(evaluate, tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    encode(folder / "small.mp4", moving_frames(2, 12, 12))
    encode(folder / "large.mp4", moving_frames(2, 64, 64))
    model = evaluate(given=folder, models=["linear", "bicubic"])["models"]["linear"]
    assert "too small" in model["failed"]["small"]
    assert list(model["videos"]) == ["large"]
    table = (tmp_path / "out" / "results.md").read_text()
    assert "linear (1 of 2 videos)" in table
    assert "linear, small: " in table


def test_only_broken_videos(commands, tmp_path):
    (tmp_path / "a.mp4").write_text("not a video")
    given = ("--videos", tmp_path, "--output", tmp_path / "out", *SMALL)
    result = commands("evaluate", *given)
    assert result.code == 2
    assert "none of the 1 videos" in result.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--models", "compct"), "compct"),
        (("--metrics", "pnsr"), "pnsr.*psnr"),
        (("--protocol", "x"), "inter4k-200"),
        (("--part", "3/2"), "1/4"),
        (("--sampler", "x"), "euler_a"),
    ],
)
def test_mistakes(commands, videos, tmp_path, options, message):
    given = ("--videos", videos, "--output", tmp_path / "out", "--device", "cpu")
    error = commands.refused("evaluate", *given, *options)
    assert re.search(message, error), error


def test_parts_make_a_whole(evaluate, tmp_path):
    first = evaluate("--part", "1/2")
    assert all(list(model["videos"]) == ["one"] for model in first["models"].values())
    assert not (tmp_path / "out" / "report.html").exists()
    both = evaluate("--part", "2/2")
    assert all(list(model["videos"]) == ["one", "two"] for model in both["models"].values())


@pytest.mark.slow
def test_two_workers(videos, tmp_path):
    given = ("bicubic", "--models", "--videos", videos, "--output", tmp_path, *SMALL)
    process = start_process("evaluate", *given, "--workers", 2)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "bicubic" in out
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results["models"]["bicubic"]["videos"]) == 2


def test_names_of_videos():
    paths = [Path("a/x.mp4"), Path("b/x.mp4"), Path("b/y.mov")]
    assert list(name_videos(paths)) == ["a/x.mp4", "b/x.mp4", "y"]


def test_parts(monkeypatch):
    assert parse_part("2/3") == Part(1, 3)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert parse_part(None) == Part(1, 4)
    with pytest.raises(UserError, match="i/n"):
        parse_part("0/3")


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_memory_of_one_piece_of_work_is_not_that_of_an_earlier_one():
    cpu = torch.device("cpu")
    reset_peak_memory(cpu)
    before = peak_memory_mb(cpu)
    large = np.ones(25_000_000)
    assert peak_memory_mb(cpu) > before + 150
    del large
    assert peak_memory_mb(cpu) > before + 150
    reset_peak_memory(cpu)
    assert peak_memory_mb(cpu) < before + 100
