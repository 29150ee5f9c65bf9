import re

import pytest
import torch

from diffusion.config import load_config
from diffusion.pipelines.cascade_builder import (
    PARTS,
    build_cascade,
    sampling_of,
    weights_of,
)
from diffusion.utils.errors import ConfigError, UserError, WeightsError


@pytest.fixture(scope="module")
def config(tiny_config):
    return load_config(tiny_config)


def test_which_weights(config, tiny_config, tmp_path):
    own = weights_of(config)
    assert own == {name: tiny_config.parent / f"{name}.safetensors" for name in PARTS}

    file = tmp_path / "any_name.safetensors"
    file.touch()
    assert weights_of(config, file) == own | {"refiner": file}

    (tmp_path / "vae.safetensors").touch()
    assert weights_of(config, tmp_path) == own | {"vae": tmp_path / "vae.safetensors"}

    # a change goes with the part that it was learnt from
    change = tmp_path / "refiner_change.safetensors"
    of_decoder = tmp_path / "of_decoder.safetensors"
    config = load_config(
        tiny_config,
        [f"weights.refiner_change={change}", f"weights.decoder_change={of_decoder}"],
    )
    assert weights_of(config)["decoder_change"] == of_decoder
    assert weights_of(config, tmp_path)["refiner_change"] == change
    assert "decoder_change" not in weights_of(config, tmp_path)
    assert weights_of(config, file) == own | {"refiner": file, "decoder_change": of_decoder}
    (tmp_path / "refiner.safetensors").touch()
    assert "refiner_change" not in weights_of(config, tmp_path)
    change.touch()
    assert weights_of(config, tmp_path)["refiner_change"] == change

    without = load_config(tiny_config, ["weights.decoder_change=None"])
    assert weights_of(without) == own

    (tmp_path / "compressor").mkdir()  # as diffusers has them
    assert weights_of(config, tmp_path)["compressor"] == tmp_path / "compressor"

    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match=r"empty: holds none of compressor\.safetensors"):
        weights_of(config, tmp_path / "empty")
    with pytest.raises(WeightsError, match="no such file or folder"):
        weights_of(config, tmp_path / "absent")


def test_only_what_will_be_used_is_loaded(config):
    pipeline = build_cascade(config, only=("compressor",))
    assert pipeline.networks.refiner is None
    assert pipeline.encode(torch.zeros(1, 3, 1, 32, 32)).shape == (1, 16, 1, 1, 1)


def test_a_part_without_weights_is_refused(tiny_config):
    config = load_config(tiny_config)
    del config["weights"]["vae"]
    with pytest.raises(UserError, match="no weights for 'vae'"):
        build_cascade(config)


def test_precision_is_the_refiners_alone(config):
    pipeline = build_cascade(config, dtype=torch.bfloat16)
    assert {p.dtype for p in pipeline.refiner.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in pipeline.vae.parameters()} == {torch.float32}
    video = torch.rand(1, 3, 1, 32, 32)
    assert pipeline.reconstruct(video, steps=1).dtype == torch.float32


def test_the_config_says_how_its_model_is_sampled(config, tiny_config):
    latents = torch.randn(1, 16, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    student = load_config(tiny_config, ["reconstruct.sampler=ddim", "reconstruct.steps=3"])
    decoded = build_cascade(student).decode(latents)
    usual = build_cascade(config)
    assert torch.equal(decoded, usual.decode(latents, steps=3, sampler="ddim"))
    assert not torch.equal(decoded, usual.decode(latents))
    assert sampling_of(student, steps=2) == sampling_of(config, "ddim", 2)
    # the spacing of euler_a is the model's, whatever else is said
    assert sampling_of(student).euler_a_spacing == "angle"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("cascade.window=0", "cascade: window=0 must be at least 1"),
        ("cascade.window_overlap=8", "cascade: window_overlap=8 must be 0 to 7"),
        ("cascade.tile_overlap=-1", "cascade: tile_overlap=-1 must be at least 0"),
        ("cascade.vae_tile=0", "cascade: vae_tile=0 must be at least 1"),
        ("cascade.memory_gb=-2", "cascade: memory_gb=-2 must be above 0"),
        ("cascade.window=2.5", "cascade.window=2.5"),
        ("cascade.windw=8", "unknown key 'windw' in cascade; did you mean 'window'"),
        ("cascade.sampler=ddim", "unknown key 'sampler' in cascade"),
        ("cascade.euler_a_spacing=angel", "cascade.euler_a_spacing='angel' must be"),
        ("cascade.compute.tf23=True", "unknown key 'tf23' in cascade.compute"),
        ("cascade.compute.tf32=yes", "cascade.compute.tf32='yes'"),
        ("reconstruct.sampler=eular_a", "unknown sampler 'eular_a', did you mean 'euler_a'"),
        ("reconstruct.steps=0", "reconstruct: steps=0 must be at least 1"),
        ("reconstruct.num_frmaes=8", "unknown key 'num_frmaes' in reconstruct"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_loaded(tiny_config, override, said):
    config = load_config(tiny_config, [override, "weights.vae=missing"])
    with pytest.raises(ConfigError, match=re.escape(said)):
        build_cascade(config)


@pytest.mark.parametrize(
    ("kind", "sampler", "said"),
    [
        ("sample", "euler_a", "cannot follow prediction_type 'sample'; use 'ddim'"),
        ("flow_prediction", "ddim", "cannot follow a flow; use 'euler' or 'dpmpp'"),
    ],
)
def test_a_sampler_that_cannot_follow_the_model_is_refused(tiny_config, kind, sampler, said):
    model = [f"noise.prediction_type={kind}", "weights.vae=missing"]
    with pytest.raises(ConfigError, match=said):
        build_cascade(load_config(tiny_config, [*model, f"reconstruct.sampler={sampler}"]))
    with pytest.raises(ConfigError, match=said):
        sampling_of(load_config(tiny_config, model), sampler)


def test_options_of_speed_are_the_configs(config, tiny_config):
    fast = load_config(tiny_config, ["cascade.compute.channels_last=True"])
    assert build_cascade(fast).compute.channels_last
    assert not build_cascade(config).compute.channels_last


def test_published_sampling_is_that_of_windows_tiles_and_samplers(tiny_config):
    pipeline = build_cascade(load_config(tiny_config, ["cascade.published=True"]))
    assert pipeline.windows.published
    assert pipeline.tiles.published
    assert pipeline.sampling.published
    assert pipeline.time_spans(20).starts == (0, 4, 8, 12)
