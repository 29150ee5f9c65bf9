import runpy
import sys
from pathlib import Path

import pytest
import torch

from diffusion.models.weights import read_metadata, read_state_dict

SCRIPT = Path(__file__).parents[2] / "tools" / "convert_checkpoint.py"


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "published.pth"
    weights = {"pos_embed": torch.zeros(3), "weight": torch.tensor([1.0, 2.0])}
    averaged = {"pos_embed": torch.zeros(3), "weight": torch.tensor([3.0, 4.0])}
    torch.save({"state_dict": weights, "state_dict_ema": averaged}, path)
    return path


def convert(monkeypatch, *arguments) -> int:
    """Run the tool as a command; its exit code."""
    monkeypatch.setattr(sys, "argv", ["convert_checkpoint.py", *map(str, arguments)])
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    except SystemExit as stop:
        return stop.code or 0
    return 0


@pytest.mark.parametrize(("options", "values"), [([], [1.0, 2.0]), (["--ema"], [3.0, 4.0])])
def test_converts(monkeypatch, checkpoint, tmp_path, options, values):
    output = tmp_path / "dit.safetensors"
    assert convert(monkeypatch, checkpoint, "-o", output, *options) == 0
    state = read_state_dict(output)
    assert {key: value.tolist() for key, value in state.items()} == {"weight": values}
    ema = "true" if options else "false"
    assert read_metadata(output) == {"converted_from": "published.pth", "ema": ema}


def test_missing_input_is_one_line_and_exit_code_2(monkeypatch, capsys, tmp_path):
    output = tmp_path / "dit.safetensors"
    assert convert(monkeypatch, tmp_path / "no.pth", "-o", output) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "no.pth: no such weights file" in lines[0]
    assert not output.exists()


def test_output_must_be_safetensors(monkeypatch, capsys, checkpoint, tmp_path):
    output = tmp_path / "dit.pth"
    assert convert(monkeypatch, checkpoint, "-o", output) == 2
    assert "must end in .safetensors" in capsys.readouterr().err
    assert not output.exists()


def test_changes_the_number_format(monkeypatch, checkpoint, tmp_path):
    full, half = tmp_path / "full.safetensors", tmp_path / "half.safetensors"
    assert convert(monkeypatch, checkpoint, "-o", full) == 0
    assert convert(monkeypatch, full, "-o", half, "--dtype", "fp16") == 0
    weight = read_state_dict(half)["weight"]
    assert weight.dtype == torch.float16
    assert weight.tolist() == [1.0, 2.0]
