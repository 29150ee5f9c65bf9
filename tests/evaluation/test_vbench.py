import copy
import subprocess
import sys
from pathlib import Path

import pytest
from small_evaluation import evaluate
from video_files import encode, moving_frames

from diffusion.data.transforms import to_float
from diffusion.data.video.clip import read_video
from diffusion.evaluation.report.report import write_report
from diffusion.evaluation.vbench import (
    DIMENSIONS,
    ENVIRONMENT,
    add_vbench,
    interpreter,
    keep_scores,
    last_line,
    link_videos,
    missing,
    score_videos,
)
from diffusion.utils.errors import UserError

installed = pytest.mark.skipif(missing() is not None, reason=str(missing()))
HOSTILE = "$(touch oops); -rf 'a\"b\n.mp4"


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    videos = {name: to_float(moving_frames(3, 64, 96, seed=len(name))) for name in ("a", HOSTILE)}
    return evaluate(folder, videos), folder


@pytest.fixture
def without_vbench(tmp_path):
    """An environment with nothing but Python."""
    python = tmp_path / "environment" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    python.chmod(0o755)
    return tmp_path / "environment"


def test_names_of_videos_never_reach_vbench(tmp_path):
    videos = [encode(tmp_path / name, moving_frames(1)) for name in ("b-1.mp4", HOSTILE, "a.mp4")]
    names = link_videos(videos, tmp_path / "linked")
    assert names == ["000000.mp4", "000001.mp4", "000002.mp4"]
    assert [(tmp_path / "linked" / name).resolve() for name in names] == videos


def test_where_it_is_not_installed_every_dimension_says_so(evaluation, tmp_path):
    results, folder = evaluation
    scored = add_vbench(results, folder, environment=tmp_path)
    for dimension in DIMENSIONS:
        entry = scored["metrics"][f"vbench_{dimension}"]
        assert "scripts/install_vbench.sh" in entry["missing"]
        assert not any(f"vbench_{dimension}" in m["means"] for m in scored["models"].values())
    script = scored["metrics"]["vbench_aesthetic_quality"]["missing"].split()[-1]
    assert (Path(__file__).parents[2] / script).is_file()
    assert "scripts/install_vbench.sh" in write_report(scored, folder).read_text()


def test_a_failure_is_one_line_with_the_reason(evaluation, without_vbench):
    results, folder = evaluation
    video = folder / results["originals"]["a"]
    with pytest.raises(UserError, match="No module named") as error:
        score_videos([video], "temporal_flickering", environment=without_vbench)
    assert "\n" not in str(error.value)


def test_an_unknown_dimension_is_refused():
    with pytest.raises(UserError, match="temporal_flickering"):
        score_videos([], "flickering")


def test_last_line_is_what_remains_on_the_screen():
    assert last_line("Traceback\n  0%|\r 50%|\rValueError: x\n\n") == "ValueError: x"
    assert "memory" in last_line("")


def test_a_reconstruction_that_is_gone_is_named(evaluation, without_vbench):
    results, folder = copy.deepcopy(evaluation[0]), evaluation[1]
    results["models"]["linear"]["videos"]["a"]["reconstruction"] = "gone.mp4"
    scored = add_vbench(
        results, folder, dimensions=["temporal_flickering"], environment=without_vbench
    )
    reason = scored["metrics"]["vbench_temporal_flickering"]["missing"]
    assert reason.startswith("linear: the reconstruction of a ")


@installed
def test_a_video_that_it_cannot_read_is_named(tmp_path):
    whole = encode(tmp_path / "whole.mp4", moving_frames(3))
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video")
    with pytest.raises(UserError, match=r"broken\.mp4"):
        score_videos([whole, broken], "temporal_flickering")


@installed
def test_scores_are_what_they_should_be_and_join_the_table(evaluation, tmp_path):
    """Flickering: 1 - mean |difference of neighbouring frames| / 255, up to colour conversion."""
    results, folder = copy.deepcopy(evaluation[0]), evaluation[1]
    results["models"] = {"bicubic": results["models"]["bicubic"]}
    once = add_vbench(results, folder, dimensions=["temporal_flickering"])
    model, name = once["models"]["bicubic"], "vbench_temporal_flickering"
    values = [video["metrics"][name]["mean"] for video in model["videos"].values()]
    for value, video in zip(values, model["videos"].values(), strict=True):
        decoded = read_video(folder / video["reconstruction"]).video
        expected = 1 - decoded.diff(dim=1).abs().mean().item() / 2
        assert value == pytest.approx(expected, abs=2e-3)
        assert 0.5 < value < 0.99
    assert values[0] != values[1]
    assert model["means"][name] == pytest.approx(sum(values) / 2)
    assert name not in results["metrics"]  # what was given stays as it was
    nowhere = {"dimensions": ["temporal_flickering"], "environment": tmp_path / "nowhere"}
    assert add_vbench(once, folder, **nowhere) == once  # nothing is measured twice
    assert keep_scores(results, once) == once
    fewer, other = copy.deepcopy(once), copy.deepcopy(once)
    del fewer["models"]["bicubic"]["videos"]["a"]
    other["models"]["bicubic"]["made_with"] = {"weights": "others"}
    for earlier in (fewer, other):
        assert keep_scores(results, earlier) == results
    assert "VBench temporal flickering" in write_report(once, folder).read_text()


RANDOM_MUSIQ = """
import sys, torch
from pyiqa.archs.musiq_arch import MUSIQ
torch.save(MUSIQ(pretrained=False).state_dict(), sys.argv[1])
"""


@installed
@pytest.mark.slow
def test_imaging_quality_of_videos_has_the_unit_of_its_mean(tmp_path, monkeypatch):
    weights = tmp_path / "pyiqa_model" / "musiq_spaq_ckpt-358bb6af.pth"
    weights.parent.mkdir()
    python = str(interpreter(ENVIRONMENT))
    subprocess.run([python, "-I", "-c", RANDOM_MUSIQ, str(weights)], check=True)
    monkeypatch.setenv("VBENCH_CACHE_DIR", str(tmp_path))
    videos = [encode(tmp_path / f"{i}.mp4", moving_frames(2, seed=i)) for i in range(2)]
    scores = score_videos(videos, "imaging_quality")
    assert scores.mean == pytest.approx(sum(scores.videos) / 2)
