"""A cascade saved as a folder, and loaded from it by the commands."""

import json
import logging

import pytest
import tiny
import torch

from diffusion.config import ROOT, dump_config, load_config
from diffusion.models.weights import save_weights
from diffusion.pipelines.cascade_builder import PARTS, build_cascade, model_of
from diffusion.pipelines.cascade_folder import load_cascade, save_cascade
from diffusion.utils.errors import ConfigError, UserError, WeightsError
from diffusion.utils.saved_cascade import INDEX


@pytest.fixture(scope="module")
def config(tiny_config):
    return load_config(tiny_config)


@pytest.fixture
def saved(config, tmp_path):
    save_cascade(tiny.random_cascade(config), config, tmp_path / "saved")
    return tmp_path / "saved"


def test_a_saved_cascade_gives_the_same_result(config, saved):
    wanted, loaded = tiny.random_cascade(config), load_cascade(saved)
    video = torch.rand(1, 3, 3, 40, 36) * 2 - 1
    assert torch.equal(loaded.reconstruct(video, steps=2), wanted.reconstruct(video, steps=2))
    names = {path.name for path in saved.iterdir()}
    assert names == {*PARTS, "scheduler", "pipeline.py", INDEX}


def test_nothing_of_a_folder_is_run(saved):
    (saved / "pipeline.py").write_text("raise SystemExit")
    (saved / "config.py").write_text("raise SystemExit")
    load_cascade(saved)


def test_a_saved_cascade_can_be_moved(saved, tmp_path):
    assert str(tmp_path) not in (saved / INDEX).read_text()
    saved.rename(tmp_path / "moved")
    load_cascade(tmp_path / "moved")


def test_a_folder_is_a_config_of_the_commands(saved):
    loaded = load_config(saved, ["cascade.window=4"])
    assert loaded["cascade"]["window"] == 4
    assert loaded["weights"]["vae"] == str(saved / "vae")


def test_the_embedded_folder_is_the_embedded_config():
    """Two descriptions of one model: diffusers reads one, the commands the other."""
    by_folder = load_config(ROOT / "pretrained" / "compact")
    described = model_of(by_folder)
    by_config = load_config("configs/compact.effn-f32.py")
    for name, said in model_of(by_config).items():
        if name in PARTS:
            assert {key: described[name][key] for key in said} == said
        else:
            assert described[name] == said
    latents = torch.randn(1, 16, 1, 1, 2, generator=torch.Generator().manual_seed(0))
    decoded = [build_cascade(one).decode(latents, steps=2) for one in (by_folder, by_config)]
    assert torch.equal(*decoded)


def test_an_older_folder_still_loads_and_says_that_it_is_code(config, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    cascade = tiny.random_cascade(config)
    for name in PARTS:
        save_weights(getattr(cascade.networks, name), tmp_path / f"{name}.safetensors", {})
    (tmp_path / "config.py").write_text(dump_config(config))
    latents = torch.randn(1, 16, 1, 1, 1)
    decoded = load_cascade(tmp_path).decode(latents, steps=1)
    assert torch.equal(decoded, cascade.decode(latents, steps=1))
    assert "config.py is code, and was run" in caplog.text


def test_a_part_of_a_cascade_can_be_saved(config, tmp_path):
    """For those who encode alone: nothing else is saved, and nothing else comes from elsewhere."""
    encoder = build_cascade(config, only=("compressor", "previewer"))
    save_cascade(encoder, config, tmp_path / "saved")
    loaded = load_cascade(tmp_path / "saved")
    video = torch.rand(1, 3, 2, 40, 36) * 2 - 1
    latents = encoder.encode(video)
    assert torch.equal(loaded.encode(video), latents)
    assert torch.equal(loaded.preview(latents), encoder.preview(latents))
    with pytest.raises(UserError, match="built without its compressor or VAE"):
        loaded.decode(latents)
    with pytest.raises(WeightsError, match="holds no vae; that cascade was built without it"):
        load_cascade(tmp_path / "saved", only=("compressor", "vae"))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", f"{INDEX}: not a readable part of a saved cascade"),
        ("[]", f"{INDEX}: holds a list"),
        (json.dumps({"settings": {"depht": 2}}), "unknown key 'depht' in config saved"),
    ],
)
def test_damaged_folders(saved, text, match):
    (saved / INDEX).write_text(text)
    with pytest.raises(ConfigError, match=match):
        load_config(saved)


def test_no_folder_of_a_cascade(tmp_path):
    with pytest.raises(ConfigError, match=rf"{INDEX}: not a readable part"):
        load_config(tmp_path)
