import logging
import multiprocessing
from pathlib import Path

import pytest

from diffusion.data.training.bad_videos import BadVideos
from diffusion.utils.errors import UserError, VideoError

PATHS = [Path(f"{i}.mp4") for i in range(10)]


def add(bad: BadVideos, number: int) -> None:
    bad.add(PATHS[number], VideoError(PATHS[number], "is\nbroken"))


def test_named_once_and_listed(tmp_path, caplog):
    file = tmp_path / "work" / "bad_videos.txt"
    bad = BadVideos(PATHS, file, 0.5)
    with caplog.at_level(logging.WARNING):
        for number in (3, 4, 3, 3, 4):
            add(bad, number)
        add(BadVideos(PATHS, file, 0.5), 3)  # of another process, or after a restart
    assert file.read_text() == "3.mp4\t3.mp4: is broken\n4.mp4\t4.mp4: is broken\n"
    assert len(caplog.records) == 2


def test_how_many_are_left_out_is_said_at_every_start(tmp_path, caplog):
    file = tmp_path / "bad_videos.txt"
    failed = {path: VideoError(path, "is broken") for path in PATHS[:2]}
    for run in (1, 2):
        with caplog.at_level(logging.INFO):
            BadVideos(PATHS, file, 0.5).add_all(failed)
        said = [record.message for record in caplog.records]
        assert said.count(f"2 of 10 videos are left out; {file} says why") == run
        assert said.count("left out: 0.mp4: is broken") == 1
    caplog.clear()
    BadVideos(PATHS, file, 0.5).add_all({})
    assert not caplog.records


def test_all_are_bad(tmp_path):
    failed = {path: VideoError(path, "is broken") for path in PATHS}
    with pytest.raises(UserError, match=r"none of the 10 videos .* first: 0\.mp4: is broken"):
        BadVideos(PATHS, tmp_path / "bad_videos.txt", 1.0).add_all(failed)


def test_too_many(tmp_path):
    file = tmp_path / "bad_videos.txt"
    bad = BadVideos(PATHS, file, 0.2)
    add(bad, 0)
    add(bad, 1)
    with pytest.raises(UserError, match=r"3 of 10 videos cannot be used.*share=0\.2.*2\.mp4"):
        add(bad, 2)


def test_those_of_other_processes_count(tmp_path):
    file = tmp_path / "bad_videos.txt"
    for number in range(2):
        add(BadVideos(PATHS, file, 0.2), number)
    with pytest.raises(UserError, match="3 of 10"):
        add(BadVideos(PATHS, file, 0.2), 2)


def test_those_of_another_list_do_not_count(tmp_path):
    file = tmp_path / "bad_videos.txt"
    file.write_text("a.mp4\tx\nb.mp4\tx\ntorn.mp")
    add(BadVideos(PATHS, file, 0.1), 0)
    assert file.read_text().splitlines()[2:] == ["torn.mp", "0.mp4\t0.mp4: is broken"]


def test_without_a_file():
    bad = BadVideos(PATHS, None, 0.1)
    add(bad, 0)
    add(bad, 0)
    with pytest.raises(UserError, match="2 of 10"):
        add(bad, 1)


def test_impossible_share():
    with pytest.raises(ValueError, match="max_bad_share is 2"):
        BadVideos(PATHS, None, 2)


def add_all(file: Path) -> None:
    bad = BadVideos(PATHS, file, 1.0)
    for number in range(10):
        add(bad, number)


def test_processes_at_the_same_time(tmp_path):
    file = tmp_path / "bad_videos.txt"
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=add_all, args=(file,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    names = [line.split("\t")[0] for line in file.read_text().splitlines()]
    assert sorted(names) == sorted(map(str, PATHS))
