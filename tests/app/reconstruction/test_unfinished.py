"""What a run that was broken off leaves, and what of it is used."""

import pytest
import torch
from safetensors.torch import load_file

from diffusion.app.reconstruction.unfinished import UnfinishedRun

KEY = {"seed": 1, "source": ["clip.mp4", 3]}
SEGMENTS = [torch.full((1, 4, n, 2, 2), float(n)) for n in (3, 2, 1, 4)]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "unfinished"


def broken_off(folder, count, error=KeyboardInterrupt):
    """A run that stopped after `count` segments."""

    def segments():
        yield from SEGMENTS[:count]
        raise error

    def run():
        with UnfinishedRun(folder, KEY) as unfinished:
            list(unfinished.keep(segments()))

    with pytest.raises(error):
        run()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_finished_windows_are_kept_in_order(folder):
    broken_off(folder, 2)
    again = UnfinishedRun(folder, KEY)
    assert len(again) == 2
    assert all(torch.equal(a, b) for a, b in zip(again, SEGMENTS[:2], strict=True))
    assert torch.equal(load_file(folder / "000001.safetensors")["latents"], SEGMENTS[1])


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, torch.OutOfMemoryError, OSError])
def test_whatever_stops_a_run_leaves_what_it_finished(folder, error):
    broken_off(folder, 2, error)
    assert len(UnfinishedRun(folder, KEY)) == 2


def test_only_a_complete_run_removes_it(folder):
    broken_off(folder, 2)
    with UnfinishedRun(folder, KEY) as run:
        assert len(run) == 2
        kept = [*run.keep(iter(SEGMENTS))]
        assert len(run) == 2  # what was there at the beginning, also when more is
        assert names(folder) == [f"00000{i}.safetensors" for i in range(4)]
    assert not folder.exists()
    assert all(torch.equal(a, b) for a, b in zip(kept, SEGMENTS, strict=True))


def test_nothing_finished_leaves_no_folder(folder):
    broken_off(folder, 0)
    assert not folder.exists()


def test_another_run_replaces_it(folder):
    broken_off(folder, 2)
    assert not UnfinishedRun(folder, KEY | {"seed": 2})
    assert not folder.exists()


@pytest.mark.parametrize("torn", [0, 1, 2])
def test_pieces_before_a_torn_one_are_used(folder, torn):
    """As a crash of the machine leaves them: the name is on the disk, but not all of the values."""
    broken_off(folder, 3)
    path = folder / f"00000{torn}.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    with UnfinishedRun(folder, KEY) as run:
        assert len(run) == torn
        assert all(torch.equal(a, b) for a, b in zip(run, SEGMENTS[:torn], strict=True))
        assert not path.exists()
        list(run.keep(iter(SEGMENTS[:2])))


def test_what_a_kill_left_half_written_goes(folder):
    broken_off(folder, 2)
    (folder / ".000002.safetensors.123.partial").write_bytes(b"half")
    assert len(UnfinishedRun(folder, KEY)) == 2
    assert names(folder) == ["000000.safetensors", "000001.safetensors"]


def test_other_processes_leave_it_alone(folder):
    broken_off(folder, 2)
    with UnfinishedRun(folder, KEY, writes=False) as run:
        assert len(list(run.keep(iter(SEGMENTS)))) == 4
    assert len(UnfinishedRun(folder, KEY)) == 2
