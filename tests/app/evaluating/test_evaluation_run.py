"""tools/evaluate.py on two small videos, with real codecs."""

import csv
import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import start_process
from video_files import encode, moving_frames

from diffusion.app.evaluating.evaluation_request import name_videos
from diffusion.app.evaluating.workers import parse_part
from diffusion.app.training.encode_set import Part
from diffusion.config import ROOT
from diffusion.data.transforms import resize_short_edge
from diffusion.data.video.clip import read_video
from diffusion.data.video.video_writer import VideoWriter
from diffusion.evaluation.metrics.fidelity import psnr
from diffusion.evaluation.vbench import missing
from diffusion.utils.errors import UserError
from diffusion.utils.measuring import peak_memory_mb, reset_peak_memory

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


def test_the_published_protocol_on_the_data_set_as_downloaded(commands, tmp_path, caplog):
    for name in ("2", "10", "1"):
        file = tmp_path / "Inter4K" / "60fps" / "UHD" / f"{name}.mp4"
        file.parent.mkdir(parents=True, exist_ok=True)
        encode(file, moving_frames(5, 36, 64), rate=60)
    given = ("--videos", tmp_path / "Inter4K", "--output", tmp_path / "out")
    options = ("--protocol", "inter4k-200", "--models", "--metrics", "psnr", "--device", "cpu")
    commands.ok("evaluate", "bicubic", *given, *options)
    assert "3.mp4, 4.mp4, 5.mp4 and 194 more are not there" in caplog.text
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    videos = results["models"]["bicubic"]["videos"]
    assert list(videos) == ["1", "2", "10"]
    sizes = {(v["frames"], v["height"], v["width"], v["fps"]) for v in videos.values()}
    assert sizes == {(3, 1024, 1024, 30.0)}
    table = (tmp_path / "out" / "results.md").read_text()
    assert "VBench aesthetic quality ↑" in table
    assert "| CascadeV (published for inter4k-200, not measured here) | 23.73 |" in table
    assert "30 frames per second" in table


def test_what_the_numbers_depend_on_stands_below_the_table(evaluate, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    results = evaluate("--metrics", "psnr", "lpips_alex", "rfvd", models=["previewer"])
    text = (tmp_path / "out" / "results.md").read_text()
    table = [line.split(" | ") for line in text.splitlines() if line.startswith("|")]
    column = table[0].index("LPIPS (alex) ↓")
    assert [line[column] for line in table[2:4]] == ["missing", "missing"]
    assert "LPIPS (alex) is missing: alexnet-owt-7be5be79.pth is not there; fetch it: " in text
    if results["metrics"]["rfvd"]["missing"]:  # a package that few have takes no column
        assert not any("rFVD" in cell for cell in table[0])
        assert "rFVD is missing: " in text
    for needed in ("data range: [0, 1]", "antialiasing", "whole frame", "at most 16", "torch 2"):
        assert needed in text
    compressor = results["models"]["previewer"]["made_with"]["weights"]["compressor"]
    assert f"weights.compressor {compressor}" in text
    assert compressor in (tmp_path / "out" / "report.html").read_text()


def test_vbench_joins_the_table_and_stays(evaluate, tmp_path):
    name = "vbench_temporal_flickering"
    results = evaluate("--vbench", "temporal_flickering", models=["bicubic"])
    text = (tmp_path / "out" / "results.md").read_text()
    assert "VBench temporal flickering ↑" in text
    if missing() is not None:
        assert name not in results["models"]["bicubic"]["means"]
        assert "VBench is not installed; bash scripts/install_vbench.sh" in text
        return
    score = results["models"]["bicubic"]["means"][name]
    assert 0.5 < score < 1
    assert evaluate(models=["bicubic"])["models"]["bicubic"]["means"][name] == score


def readme_command() -> list[str]:
    """The arguments of the command that made the README's table."""
    text = (ROOT / "README.md").read_text().replace("\\\n", " ")
    return shlex.split(re.search(r"^\S+ tools/evaluate\.py (.+)$", text, re.MULTILINE)[1])


@pytest.mark.parametrize(
    "size", [(3, 128), pytest.param((16, 404), marks=pytest.mark.slow)], ids=["small", "whole"]
)
def test_the_command_of_the_readme_on_the_example_clip(commands, tmp_path, monkeypatch, size):
    num_frames, height = size
    clip = read_video(ROOT / "example" / "city.mp4", num_frames=num_frames)
    folder = tmp_path / "my_clips"
    folder.mkdir()
    with VideoWriter(folder / "city.mp4", clip.fps) as writer:
        writer.write(resize_short_edge(clip.video, height))
    monkeypatch.chdir(tmp_path)
    commands.ok("evaluate", *readme_command(), "--device", "cpu")
    results = json.loads((tmp_path / "results" / "results.json").read_text())
    readme = (ROOT / "README.md").read_text()
    assert len(results["models"]) >= 6
    for model in results["models"].values():
        assert list(model["videos"]) == ["city"]
        assert model["means"]["psnr"] > 15
    for name in results["models"]:
        assert f"| {name} |" in readme
    assert (tmp_path / "results" / "report.html").is_file()


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
    assert "none of 1 video can" in result.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--models", "compct"), "compct"),
        (("--metrics", "pnsr"), "pnsr.*psnr"),
        (("--protocol", "x"), "inter4k-200"),
        (("--part", "3/2"), "1/4"),
        (("--sampler", "x"), "euler_a"),
        (("--videos", "/nowhere"), "videos: /nowhere does not exist"),
        (("--vbench", "flickering"), "temporal_flickering"),
        (("--dino", "/nowhere"), "--dino: /nowhere is not a folder of transformers"),
    ],
)
def test_mistakes(commands, videos, tmp_path, options, message):
    given = ("--videos", videos, "--output", tmp_path / "out", "--device", "cpu")
    error = commands.refused("evaluate", *given, *options)
    assert re.search(message, error), error


def test_a_model_that_cannot_be_built_is_refused_before_any_is_measured(commands, videos, tmp_path):
    given = ("--videos", videos, "--output", tmp_path / "out", *SMALL)
    (tmp_path / "empty").mkdir()
    error = commands.refused(
        "evaluate", "bicubic", *given, "--models", f"diffusers:{tmp_path / 'empty'}"
    )
    assert "cannot be loaded" in error
    assert not times(tmp_path)


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
