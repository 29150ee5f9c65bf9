import pytest
import tiny
import torch

from diffusion.config import load_config
from diffusion.pipelines.cascade_builder import (
    PARTS,
    build_cascade,
    load_cascade,
    save_cascade,
    weights_of,
)
from diffusion.utils.errors import UserError, WeightsError


@pytest.fixture(scope="module")
def config(tiny_config):
    return load_config(tiny_config)


def test_a_saved_cascade_gives_the_same_result(config, tmp_path):
    pipeline = tiny.random_cascade(config)
    save_cascade(pipeline, config, tmp_path / "saved")
    loaded = load_cascade(tmp_path / "saved")
    video = torch.rand(1, 3, 3, 40, 36) * 2 - 1
    wanted = pipeline.reconstruct(video, steps=2)
    assert wanted.shape == video.shape
    assert torch.equal(loaded.reconstruct(video, steps=2), wanted)
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == sorted(
        ["config.py", *(f"{name}.safetensors" for name in PARTS)]
    )


def test_a_saved_cascade_can_be_moved(config, tmp_path):
    save_cascade(tiny.random_cascade(config), config, tmp_path / "saved")
    (tmp_path / "saved").rename(tmp_path / "moved")
    load_cascade(tmp_path / "moved")


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
