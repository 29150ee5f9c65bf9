"""Several processes measure into one folder: one of them publishes, once, and everything."""

import json
import os
import signal

import pytest
from forked import ForkedCommand, wait_for
from video_files import encode, moving_frames

SMALL = ("--metrics", "psnr", "--device", "cpu", "--dtype", "fp32", "--models", "bicubic:0.5")


@pytest.fixture
def start(tmp_path):
    """Start a process that evaluates four videos, or its share of them."""
    (tmp_path / "videos").mkdir()
    for i in range(4):
        encode(tmp_path / "videos" / f"{i}.mp4", moving_frames(2, 64, 64, seed=i))
    given = ("bicubic", "--videos", tmp_path / "videos", "--output", tmp_path / "out", *SMALL)

    def run(*options, **more) -> ForkedCommand:
        return ForkedCommand("evaluate", *given, *options, **more)

    return run


def rank(number: int, count: int) -> dict[str, str]:
    """What torchrun tells a process."""
    return {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(count)}


def published(*processes: ForkedCommand) -> list[bool]:
    """Which of them did, when they have ended."""
    outputs = [process.communicate(timeout=240) for process in processes]
    for process, (_, err) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, err
    return ["report.html" in out for out, _ in outputs]


def measured(folder) -> int:
    results = json.loads((folder / "results.json").read_text())
    return sum(len(model["videos"]) for model in results["models"].values())


def test_an_early_process_leaves_the_report_to_the_last(start, tmp_path):
    out = tmp_path / "out"
    assert published(start(environment=rank(0, 2))) == [False]
    assert not (out / "report.html").exists()
    assert published(start(environment=rank(1, 2))) == [True]
    assert measured(out) == 8
    assert "4 videos" in (out / "report.html").read_text()


def test_parts_that_share_a_folder_publish_with_the_last(start, tmp_path):
    assert published(start("--part", "2/2")) == [False]
    assert published(start("--part", "1/2")) == [True]
    assert published(start("--part", "2/2")) == [False]  # nothing is new
    assert published(start()) == [True]  # whoever asks is shown the table again


def test_processes_that_finish_together_publish_once(start, tmp_path):
    for _ in range(2):  # the second time, all is measured before they start
        together = published(*(start(environment=rank(i, 3)) for i in range(3)))
        assert sum(together) == 1
    assert measured(tmp_path / "out") == 8


def die_in_the_report() -> None:
    from diffusion.app.evaluating import publication

    publication.write_report = lambda *_: os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_process_did_not_publish_the_next_one_does(start, tmp_path):
    assert published(start("--part", "1/2")) == [False]
    killed = start("--part", "2/2", prepare=die_in_the_report)
    assert killed.wait(240) == -signal.SIGKILL
    assert not (tmp_path / "out" / "report.html").exists()
    assert published(start("--part", "2/2")) == [True]
    assert measured(tmp_path / "out") == 8


def stop_in_the_report() -> None:
    from diffusion.app.evaluating import publication

    publication.write_report = lambda *_: os.kill(os.getpid(), signal.SIGSTOP)


def test_who_waits_for_a_process_that_is_killed_publishes(start, tmp_path):
    folder = tmp_path / "out"
    assert published(start("--part", "1/2")) == [False]
    first = start("--part", "2/2", prepare=stop_in_the_report)
    wait_for(lambda: state_of(first.pid) == "T")
    other = start()
    wait_for(lambda: other.poll() is not None or is_waiting(other.pid))
    assert other.poll() is None
    os.kill(first.pid, signal.SIGKILL)
    assert published(other) == [True]
    assert (folder / "report.html").exists()


def state_of(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


def is_waiting(pid: int) -> bool:
    """For a lock that another process has."""
    with open("/proc/locks") as file:
        return any("->" in line and f" {pid} " in line for line in file)


def test_a_video_that_was_mended_is_measured_before_anything_is_published(start, tmp_path):
    video = tmp_path / "videos" / "1.mp4"
    whole = video.read_bytes()
    video.write_bytes(whole[:300])
    assert published(start()) == [True]
    video.write_bytes(whole)
    assert published(start(environment=rank(0, 2))) == [False]
    assert published(start(environment=rank(1, 2))) == [True]
    assert measured(tmp_path / "out") == 8


@pytest.mark.slow
def test_workers_publish_once(tmp_path, start):
    process = start("--workers", 2)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert out.count("report.html") == 1
    assert measured(tmp_path / "out") == 8
