import runpy
import sys
from pathlib import Path

import pytest
import tiny
import torch

from diffusion.config import load_config
from diffusion.models import MODELS
from diffusion.models.low_rank import LowRank, layers_of
from diffusion.models.weights import read_metadata, read_state_dict, save_weights
from diffusion.pipelines.cascade_builder import PARTS, load_parts

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


# A config's networks become folders.


@pytest.fixture
def config(tmp_path):
    return tiny.write_cascade(tmp_path)


def test_folders_are_the_configs_networks(monkeypatch, config, tmp_path):
    output = tmp_path / "out"
    assert convert(monkeypatch, config, "-o", output, "--max-shard-size", "20KB") == 0
    wanted = load_parts(load_config(config), PARTS)
    names = {path.name for path in output.iterdir()}
    assert names == {*PARTS, "scheduler", "pipeline.py", "model_index.json"}
    for name, network in wanted.items():
        loaded = MODELS.classes[type(network).__name__].from_pretrained(output, subfolder=name)
        state = loaded.state_dict()
        assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())
        assert len(list((output / name).glob("*.safetensors"))) > 1


def test_folders_keep_the_number_format_unless_told(monkeypatch, config, tmp_path):
    for name in PARTS:
        file = tmp_path / f"{name}.safetensors"
        save_weights({k: v.half() for k, v in read_state_dict(file).items()}, file, {})
    assert convert(monkeypatch, config, "-o", tmp_path / "half") == 0
    options = ("--dtype", "fp32", "--variant", "full")
    assert convert(monkeypatch, config, "-o", tmp_path / "full", *options) == 0
    for name in PARTS:
        assert {v.dtype for v in read_state_dict(tmp_path / "half" / name).values()} == {
            torch.float16
        }
        file = tmp_path / "full" / name / "diffusion_pytorch_model.full.safetensors"
        assert {v.dtype for v in read_state_dict(file).values()} == {torch.float32}


def test_a_change_of_low_rank_has_a_folder_beside_its_network(monkeypatch, config, tmp_path):
    vae = load_parts(load_config(config), ("vae",))["vae"]
    change = LowRank.beside(vae.decoder, 2, layers_of(vae.decoder, torch.nn.Conv2d))
    save_weights(change, tmp_path / "change.safetensors", {})
    option = f"weights.decoder_change={tmp_path / 'change.safetensors'}"
    output = tmp_path / "out"
    assert convert(monkeypatch, config, "-o", output, "--cfg-options", option) == 0
    loaded = LowRank.from_pretrained(output, subfolder="decoder_change")
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in change.state_dict().items())
    base = read_state_dict(output / "vae")
    assert all(torch.equal(v, base[k]) for k, v in vae.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-o", "x.safetensors"], "x.safetensors: what becomes of a config is a folder"),
        (["-o", "x", "--ema"], "--ema is for a .pth"),
        (["-o", "x", "--weights", "none"], "none: no such file or folder of weights"),
    ],
)
def test_what_a_config_cannot_become(monkeypatch, capsys, config, tmp_path, options, message):
    monkeypatch.chdir(tmp_path)
    assert convert(monkeypatch, config, *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "x").exists()
