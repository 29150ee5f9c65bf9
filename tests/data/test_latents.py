import json
import os

import pytest
import torch
from safetensors.torch import save_file

from diffusion.data.latents import (
    LatentsInfo,
    LatentsReader,
    LatentsWriter,
    load_latents,
    save_latents,
)
from diffusion.utils.errors import UserError

INFO = LatentsInfo(
    model="compact.effn-f32",
    fps=29.97002997002997,
    height=405,
    width=720,
    crop=(2, 8, 400, 704),
    padding=(16, 0),
)


@pytest.fixture
def saved(tmp_path):
    latents = torch.randn(1, 16, 5, 3, 4)
    save_latents(tmp_path / "x.safetensors", latents, INFO)
    return tmp_path / "x.safetensors", latents


def refusal(path) -> str:
    with pytest.raises(UserError) as caught:
        load_latents(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message.removeprefix(str(path))


def test_round_trip(saved):
    path, latents = saved
    got, info = load_latents(path)
    assert info == INFO
    assert got.dtype == torch.float32
    assert torch.equal(got, latents.half().float())
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_written_and_read_in_pieces(saved, tmp_path, chunk):
    whole, latents = saved
    with LatentsWriter(tmp_path / "y", latents.shape, INFO) as writer:
        for piece in latents.split(chunk, dim=2):
            writer.write(piece)
        assert not (tmp_path / "y").exists()
    got, info = load_latents(tmp_path / "y")
    assert info == INFO
    assert torch.equal(got, load_latents(whole)[0])
    reader = LatentsReader(tmp_path / "y")
    assert reader.shape == (1, 16, 5, 3, 4)
    pieces = list(reader.chunks(chunk))
    assert {piece.shape[2] for piece in pieces[:-1]} <= {chunk}
    assert torch.equal(torch.cat(pieces, dim=2), got)


@pytest.mark.parametrize("value", [float("nan"), 1e6])
def test_a_piece_that_cannot_be_stored_leaves_nothing(tmp_path, value):
    writer = LatentsWriter(tmp_path / "x", (1, 16, 2, 1, 1), INFO)
    with pytest.raises(UserError, match="not finite"), writer:
        writer.write(torch.full((1, 16, 1, 1, 1), value))
    assert os.listdir(tmp_path) == []


def test_missing_frames_leave_the_older_file(tmp_path):
    """A file under its final name has all the frames that its header says."""
    path = tmp_path / "x"
    save_latents(path, torch.ones(1, 4, 2, 1, 1), INFO)
    older = path.read_bytes()
    with (
        pytest.raises(UserError, match=r"x: not written, only 2 of 3 frames came"),
        LatentsWriter(path, (1, 4, 3, 1, 1), INFO) as writer,
    ):
        writer.write(torch.zeros(1, 4, 2, 1, 1))
    assert path.read_bytes() == older
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("shape", [(1, 4, 2, 1, 1), (1, 3, 1, 1, 1), (2, 4, 1, 1, 1)])
def test_pieces_that_do_not_belong_to_the_file(tmp_path, shape):
    """A frame too many would lie where the next channel begins."""
    writer = LatentsWriter(tmp_path / "x", (1, 4, 3, 1, 1), INFO)
    with pytest.raises(ValueError, match="but 1 frames are left"), writer:  # noqa: PT012
        writer.write(torch.zeros(1, 4, 2, 1, 1))
        writer.write(torch.zeros(shape))
    assert os.listdir(tmp_path) == []


def test_values_take_two_bytes_each(saved):
    path, latents = saved
    assert path.stat().st_size < 2 * latents.numel() + 1000


def test_float32_and_bfloat16_on_request(tmp_path):
    latents = torch.randn(1, 16, 5, 3, 4)
    save_latents(tmp_path / "a", latents, INFO, dtype=torch.float32)
    assert torch.equal(load_latents(tmp_path / "a")[0], latents)
    save_latents(tmp_path / "b", latents, INFO, dtype=torch.bfloat16)
    assert torch.equal(load_latents(tmp_path / "b")[0], latents.bfloat16().float())


def test_large_values_do_not_overflow(tmp_path):
    latents = torch.full((1, 16, 1, 2, 2), 1e6)
    save_latents(tmp_path / "x", latents, INFO)
    assert torch.equal(load_latents(tmp_path / "x")[0], latents)


def test_what_is_not_finite_is_not_written(tmp_path):
    with pytest.raises(UserError, match="not finite"):
        save_latents(tmp_path / "x", torch.full((1, 16, 1, 2, 2), float("inf")), INFO)
    assert os.listdir(tmp_path) == []


def test_only_whole_videos(tmp_path):
    with pytest.raises(ValueError, match="expected"):
        save_latents(tmp_path / "x", torch.zeros(16, 1, 2, 2), INFO)


def test_missing_folder_and_damaged(saved):
    path, _ = saved
    assert "no such" in refusal(path.parent / "absent.safetensors")
    assert "no such" in refusal(path.parent)
    content = path.read_bytes()
    for damaged in (b"", b"text", content[:-5], content[:40], b"\xff" * 8 + content[8:]):
        path.write_bytes(damaged)
        assert "cannot be read as latents" in refusal(path)


def rewrite(path, tensors=None, **changes):
    """The file of `saved` with another header or other tensors; None removes an entry."""
    header = {
        "kind": "cascadev.latents",
        "format_version": "1",
        "model": json.dumps("m"),
        "fps": "25.0",
        "height": "64",
        "width": "96",
        "crop": "[0, 0, 64, 96]",
        "padding": "[0, 0]",
    }
    header = {name: value for name, value in (header | changes).items() if value is not None}
    save_file(tensors or {"latents": torch.zeros(1, 16, 2, 2, 3)}, path, metadata=header)
    return path


def test_rewrite_makes_good_files(tmp_path):
    assert load_latents(rewrite(tmp_path / "x"))[1].crop == (0, 0, 64, 96)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"kind": None}, "does not hold latents"),
        ({"kind": "pt"}, "does not hold latents"),
        ({"format_version": "2"}, "format version 2"),
        ({"fps": None}, "lacks 'fps'"),
        ({"fps": "fast"}, "damaged"),
        ({"fps": "NaN"}, "damaged"),
        ({"height": "-3"}, "damaged"),
        ({"crop": "[0, 0, 64]"}, "damaged"),
        ({"crop": "7"}, "damaged"),
        ({"padding": "[-1, 0]"}, "damaged"),
    ],
)
def test_foreign_headers(tmp_path, changes, expected):
    assert expected in refusal(rewrite(tmp_path / "x", **changes))


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ({"weight": torch.zeros(2)}, "does not hold latents"),
        ({"latents": torch.zeros(16, 2, 2)}, "not (1, C, F, h, w)"),
        ({"latents": torch.zeros(1, 16, 0, 2, 2)}, "not (1, C, F, h, w)"),
        ({"latents": torch.full((1, 16, 1, 1, 1), float("nan"))}, "not finite"),
    ],
)
def test_foreign_tensors(tmp_path, tensors, expected):
    assert expected in refusal(rewrite(tmp_path / "x", tensors))


def test_unwritable_place(tmp_path):
    path = tmp_path / "absent" / "x.safetensors"
    with pytest.raises(UserError, match="cannot be written") as caught:
        save_latents(path, torch.zeros(1, 16, 1, 2, 2), INFO)
    assert "\n" not in str(caught.value)
