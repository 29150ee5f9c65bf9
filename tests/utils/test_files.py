import json
import os
import signal
from itertools import count
from pathlib import Path

import pytest

from diffusion.models.weights import read_metadata, save_weights_together
from diffusion.utils.errors import UserError
from diffusion.utils.files import RECORD, finish_replacing, replacing_together

NAMES = ["a.txt", "b.txt", "c.txt"]


def write(folder, text):
    with replacing_together(folder, NAMES) as partials:
        for partial in partials:
            partial.write_text(text)


def texts(folder):
    return [(folder / name).read_text() for name in NAMES]


def killed_at_rename(number, job):
    """Run the job in a process that is killed before this rename, from 1; False if it ended."""
    child = os.fork()
    if child == 0:
        renames, rename = count(1), Path.replace

        def counting(self, target):
            if next(renames) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return rename(self, target)

        Path.replace = counting
        try:
            job()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_a_set_of_files_is_old_or_new_whenever_its_writer_is_killed(tmp_path):
    write(tmp_path, "old")
    seen = []
    for number in range(1, 10):
        if not killed_at_rename(number, lambda: write(tmp_path, "new")):
            break
        finish_replacing(tmp_path)
        assert len(set(texts(tmp_path))) == 1
        seen.append(texts(tmp_path)[0])
        write(tmp_path, "old")
    assert seen == ["old", "new", "new", "new"]  # the first rename is that of the record
    assert texts(tmp_path) == ["new"] * 3
    assert not (tmp_path / RECORD).exists()


def test_the_writers_next_start_finishes_too(tmp_path):
    write(tmp_path, "old")
    assert killed_at_rename(3, lambda: write(tmp_path, "new"))
    assert texts(tmp_path) == ["new", "old", "old"]
    with replacing_together(tmp_path, NAMES):
        assert texts(tmp_path) == ["new"] * 3
    assert texts(tmp_path) == [""] * 3
    assert sorted(path.name for path in tmp_path.iterdir()) == NAMES


def test_weights_are_read_as_the_set_that_was_written(tmp_path):
    """A file that got its name is not read beside one that did not."""

    def save(step):
        names = ("compressor.safetensors", "previewer.safetensors")
        save_weights_together(tmp_path, {name: ({}, {"step": step}) for name in names})

    save("10")
    assert killed_at_rename(3, lambda: save("20"))
    steps = [read_metadata(tmp_path / f"{n}.safetensors") for n in ("previewer", "compressor")]
    assert steps == [{"step": "20"}] * 2


def test_a_record_names_nothing_outside_its_folder(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "evil").write_text("evil")
    (inside / RECORD).write_text(json.dumps({"evil": "../outside", "../kept": "gone"}))
    (tmp_path / "kept").write_text("kept")
    finish_replacing(inside)
    assert not (tmp_path / "outside").exists()
    assert (tmp_path / "kept").exists()


def write_until_full(folder):
    with replacing_together(folder, NAMES) as partials:
        partials[0].write_text("new")
        raise OSError(28, "No space left on device")


def test_what_the_disk_refuses_leaves_the_old_set(tmp_path):
    write(tmp_path, "old")
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
        write_until_full(tmp_path)
    assert texts(tmp_path) == ["old"] * 3
    assert sorted(path.name for path in tmp_path.iterdir()) == NAMES
