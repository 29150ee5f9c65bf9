from pathlib import Path

import pytest
import tiny
import torch

from diffusion.config import (
    ROOT,
    check_moved,
    dump_config,
    load_config,
    parse_override,
    resolve,
)
from diffusion.pipelines.cascade_builder import (
    CHANGES,
    PARTS,
    build_cascade,
    build_conditioning,
    build_noise,
    build_part,
    check_config,
)
from diffusion.training.trainer_builder import build_trainer, check_files, check_training
from diffusion.utils.errors import ConfigError, WeightsError

SHIPPED = sorted(path for path in (ROOT / "configs").rglob("*.py") if path.parent.name != "_base_")


@pytest.fixture
def config_file(tmp_path):
    (tmp_path / "base.py").write_text(
        "model_id = 'base'\nvae = dict(type='CompactVAE', stem=4, latent_channels=4)\n"
        "video_list = ['a', 'b']\n"
    )
    path = tmp_path / "child.py"
    path.write_text("_base_ = ['base.py']\nvae = dict(stem=2)\n_hidden = 1\n")
    return path


def test_a_child_changes_single_keys_of_its_base(config_file):
    config = load_config(config_file)
    assert config["model_id"] == "base"
    assert config["vae"] == {"type": "CompactVAE", "stem": 2, "latent_channels": 4}
    assert "_hidden" not in config


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("vae.stem=8", 8),
        ("vae.posterior_std=1e-3", 1e-3),
        ("vae.encoder_channels=[1, 2]", [1, 2]),
        ("vae.type=Other", "Other"),
        ("vae.tile=None", None),
        ("vae.published=True", True),
        ("vae.path=a=b c", "a=b c"),
        ("vae.new.key='x'", {"key": "x"}),
    ],
)
def test_overrides(config_file, text, expected):
    key = text.partition("=")[0].split(".")[1]
    got = load_config(config_file, [text])["vae"][key]
    assert got == expected
    assert type(got) is type(expected) or isinstance(expected, dict)


def test_later_overrides_win_and_lists_are_replaced(config_file):
    config = load_config(config_file, ["vae.stem=1", "vae.stem=3", "video_list=['c']"])
    assert config["vae"]["stem"] == 3
    assert config["video_list"] == ["c"]


@pytest.mark.parametrize("text", ["vae", "=3", " =3"])
def test_malformed_overrides(text):
    with pytest.raises(ConfigError, match="not of the form key=value"):
        parse_override(text)


@pytest.mark.parametrize("text", ["video_list.7=z", "video_list.1=z", "vae.stem.deep=1"])
def test_overrides_that_do_not_fit(config_file, text):
    with pytest.raises(ConfigError, match="--cfg-options"):
        load_config(config_file, [text])


def test_a_top_level_key_that_nothing_reads(config_file):
    with pytest.raises(ConfigError, match=r"'modelid' in config child.py; did you mean 'model_id'"):
        load_config(config_file, ["modelid=x"])


def test_dumped_configs_load_to_the_same(tmp_path, config_file):
    config = load_config(config_file, ["vae.decoder_depths=[1, None]", "vae.note='it''s'"])
    (tmp_path / "dumped.py").write_text(dump_config(config))
    assert load_config(tmp_path / "dumped.py") == config


def test_paths_are_found_from_the_working_directory_then_the_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve("configs") == ROOT / "configs"
    (tmp_path / "configs").mkdir()
    assert resolve("configs").resolve() == tmp_path / "configs"
    assert resolve(tmp_path) == tmp_path
    assert load_config("configs/compact.vae.py")["model_id"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_configs_build_strictly(path, tmp_path):
    config = load_config(path)
    check_config(config)
    with torch.device("meta"):  # no memory, whatever the size
        parts = {name: build_part(config, name) for name in PARTS}
    noise = build_noise(config)
    conditioning = build_conditioning(config, parts["compressor"], parts["vae"])
    assert config["weights"].keys() - CHANGES.keys() == set(PARTS)

    channels = parts["compressor"].latent_channels
    assert parts["previewer"].latent_channels == channels
    if conditioning.uses_base:
        channels += parts["vae"].latent_channels
    refiner = parts["refiner"]
    assert refiner.condition_channels == channels
    assert refiner.latent_channels == parts["vae"].latent_channels
    assert refiner.learned_variance == noise.learned_variance

    (tmp_path / "dumped.py").write_text(dump_config(config))
    assert load_config(tmp_path / "dumped.py") == config


@pytest.mark.parametrize(
    "path", [p for p in SHIPPED if "train" in load_config(p)], ids=lambda path: path.name
)
def test_shipped_trainings_have_no_unread_key(path):
    check_training(load_config(path))


@pytest.mark.parametrize(
    "section", ["compressor", "previewer", "vae", "refiner", "noise", "conditioning", "cascade"]
)
def test_unknown_keys_everywhere(tiny_config, section):
    config = load_config(tiny_config, [f"{section}.no_such_key=1"])
    with pytest.raises(ConfigError, match=f"unknown key 'no_such_key' in {section}; "):
        check_config(config)


def training_config(*overrides):
    return load_config(ROOT / "configs" / "compact.effn-f32.py", overrides)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("reconstruct.num_frmaes=4", "unknown key 'num_frmaes' in reconstruct"),
        ("reconstruct.num_frames=0", "reconstruct: num_frames=0 must be at least 1"),
        ("refiner.hidden_size=big", "refiner.hidden_size='big' must be a whole number"),
        ("cascade.window=2.5", "cascade.window=2.5 must be a whole number"),
        ("video_list=3", "video_list=3 must be a list of texts or text"),
    ],
)
def test_training_refuses_what_reconstruction_refuses(option, said):
    with pytest.raises(ConfigError, match=said):
        check_training(training_config(option))


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("refiner.num_heads=0", "refiner.num_heads=0 must be a whole number of at least 1"),
        ("refiner.num_heads=5", "refiner: hidden size 288 does not divide into 5 heads"),
        ("refiner.hidden_size=50", "refiner: hidden size 50 cannot hold sine-cosine positions"),
        ("refiner.depth=0", "refiner.depth=0 must be"),
        (
            "vae={'type':'Previewer'}",
            "vae.type='Previewer' is no network .* VideoVAE",
        ),
        ("refiner.mlp_ratio=0.001", "refiner: mlp_ratio=0.001 leaves no channels of 288"),
        ("refiner.attention=flash", "refiner.attention='flash' must be 'auto', 'sdpa',"),
        ("refiner.position_interpolation=0", "must be a number above 0"),
        ("vae.latent_channels=0", "vae.latent_channels=0 must be"),
        ("vae.decoder_channels=[8]", "vae: encoder_channels .* must have as many stages"),
        ("compressor.depths=[1]", "compressor: channels .* must have one entry per stage"),
        ("compressor.blocks=['round']", r"compressor.blocks\[0\]='round' must be 'conv' or 'wide'"),
        ("previewer.latent_channels=99999", "previewer: latent_channels=99999 must be at most"),
        ("noise.num_train_timesteps=1", "noise: num_train_timesteps=1 must be at least 2"),
        ("noise.prediction_type=eps", "noise.prediction_type='eps' must be 'epsilon', "),
        ("noise.min_snr_gamma=0", "noise.min_snr_gamma=0 must be a number above 0 or None"),
        ("conditioning.scale=0", "conditioning.scale=0 must be a number above 0"),
        ("conditioning.residual_std=0", "conditioning.residual_std=0 must be a list of numbers"),
        ("conditioning.residual_std=[1,0]", r"conditioning.residual_std\[1\]=0 must be"),
        ("cascade.memory_gb=-1", "cascade: memory_gb=-1 must be above 0"),
        ("cascade.window=0", "cascade: window=0 must be at least 1"),
        ("reconstruct.steps=0", "reconstruct: steps=0 must be at least 1"),
        ("data.batch_size=0", "data.batch_size=0 must be a whole number of at least 1"),
        ("data.size=[0,64]", r"data.size=\[0, 64\] must be"),
        ("data.policy=cut", "data.policy='cut' must be 'crop', 'resize' or 'random'"),
        ("data.flip=2", "data.flip=2 must be a number from 0 to 1"),
        ("data.seed=-1", "data.seed=-1 must be a whole number of at least 0"),
        ("data.threads=0", "data.threads=0 must be"),
        ("train.loop.seed=-1", "train.loop: seed is -1"),
        ("train.loop.num_workers=-1", "train.loop: num_workers is -1"),
        ("train.loop.max_steps=-1", "train.loop: max_steps is -1"),
        ("train.loop.ema_decay=2", "train.loop: ema_decay is 2"),
        ("train.learning_rate.peak=0", "train.learning_rate: peak is 0"),
        ("train.stage.position_range=[1]", "must be a list of 3 whole numbers of at least 0"),
        ("train.stage.image_share=1.5", "train.stage.image_share=1.5 must be a number from 0 to 1"),
        ("train.stage.latent_crop=0", "train.stage.latent_crop=0 must be"),
        ("train.optimizer={'type':'AdamW','betas':[2,3]}", "train.optimizer: Invalid beta"),
        ("train.optimizer={'type':'CAME','betas':[2,3,4]}", "train.optimizer: CAME cannot have"),
        ("train.optimizer={'type':'Muon','momentum':1}", "train.optimizer.momentum=1 must be"),
        ("validation.interval=0", "validation.interval=0 must be"),
        ("validation.size=8", "validation.size=8 must be a whole number of at least 32"),
    ],
)
def test_values_out_of_range_are_refused_before_anything_is_loaded(option, said, monkeypatch):
    monkeypatch.setattr("diffusion.training.trainer_builder.provide", pytest.fail)
    with pytest.raises(ConfigError, match=said) as caught:
        build_trainer(training_config(option), Path("nowhere"))
    assert "\n" not in str(caught.value)


def test_files_that_a_training_reads_must_be_there(tmp_path):
    """Those of frozen networks only where something will ask for them."""
    lost = tmp_path / "lost.safetensors"
    for option in ("train.stage.init_from", "weights.vae", "weights.previewer"):
        with pytest.raises(WeightsError, match=f"^{option}={lost}: no such weights file"):
            check_files(training_config(f"{option}={lost}"))
    check_files(training_config(f"weights.refiner={lost}"))  # it may be what is to be trained
    config = load_config(ROOT / "configs" / "compact.decoder.py", [f"weights.refiner={lost}"])
    with pytest.raises(WeightsError, match=f"^weights.refiner={lost}"):
        check_files(config)
    latents = load_config(ROOT / "configs" / "compact.latents.py", [f"weights.vae={lost}"])
    with pytest.raises(WeightsError):  # for the validation
        check_files(latents)
    del latents["validation"]
    check_files(latents)


def test_all_weights_are_looked_for_before_any_is_read(tmp_path, monkeypatch):
    path = tiny.write_cascade(tmp_path)
    (tmp_path / "refiner.safetensors").unlink()
    monkeypatch.setattr("diffusion.pipelines.cascade_builder.load_weights", pytest.fail)
    with pytest.raises(WeightsError, match=r"^weights.refiner=\S+: no such weights file"):
        build_cascade(load_config(path))


def test_keys_of_older_configs_are_told_where_they_went():
    moved = {"train.lr": "train.optimizer.lr", "old": "new.key"}
    check_moved({"train": {"optimizer": {"lr": 1}}, "lr": 1}, moved)
    check_moved({"train": None}, moved)
    with pytest.raises(ConfigError, match=r"^train.lr is now train.optimizer.lr; change it"):
        check_moved({"train": {"lr": 1}}, moved)
    with pytest.raises(ConfigError, match=r"^old is now new.key"):
        check_moved({"old": None}, moved)


def test_a_config_without_a_name(tmp_path):
    config = load_config(tiny.write_config(tmp_path / "a.py"))
    del config["model_id"]
    with pytest.raises(ConfigError, match="no 'model_id'"):
        check_config(config)
