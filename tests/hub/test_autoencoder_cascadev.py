"""The cascade with the interface of diffusers' video autoencoders.

Their own tests of it are run by scripts/diffusers_mixins.sh.
"""

import copy
import json

import pytest
import tiny
import torch

from diffusion.config import load_config
from diffusion.hub.autoencoder_cascadev import AutoencoderCascadeV
from diffusion.pipelines.cascade_builder import PARTS, build_cascade, model_of
from diffusion.pipelines.cascade_folder import save_cascade
from diffusion.utils.errors import ConfigError


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return load_config(tiny.write_cascade(tmp_path_factory.mktemp("cascade")))


@pytest.fixture(scope="module")
def shared(config):
    return AutoencoderCascadeV.from_cascade(config)


def test_of_a_folder(shared, config, tmp_path):
    save_cascade(build_cascade(config), config, tmp_path)
    loaded = AutoencoderCascadeV.from_cascade(tmp_path).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in shared.state_dict().items())


@pytest.fixture
def autoencoder(shared):
    return copy.deepcopy(shared)


@pytest.fixture
def video():
    return 2 * torch.rand(2, 3, 3, 64, 96, generator=torch.Generator().manual_seed(0)) - 1


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_it_is_the_cascade(autoencoder, config, video):
    cascade = build_cascade(config)
    latents = autoencoder.encode(video).latent_dist.mode()
    assert torch.equal(latents, cascade.encode(video))
    assert torch.equal(autoencoder.decode(latents).sample, cascade.decode(latents))
    short = autoencoder.decode(latents, num_inference_steps=2).sample
    assert torch.equal(short, cascade.decode(latents, steps=2))


def test_a_folder_is_the_autoencoder(autoencoder, video, tmp_path):
    autoencoder.save_pretrained(tmp_path)
    loaded = AutoencoderCascadeV.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(video).sample, autoencoder(video).sample)
    written = json.loads((tmp_path / "config.json").read_text())
    assert "weights" not in written["cascade"]  # no path of this machine
    assert loaded.config.scaling_factor == 1
    assert loaded.config.latent_channels == 16
    again = AutoencoderCascadeV.from_config(loaded.config)
    assert again.state_dict().keys() == autoencoder.state_dict().keys()


def test_what_training_scripts_ask_an_autoencoder(autoencoder, video):
    posterior = autoencoder.encode(video).latent_dist
    ratio = autoencoder.spatial_compression_ratio
    assert posterior.mode().shape == (2, 16, 3, 64 // ratio, 96 // ratio)
    assert autoencoder.temporal_compression_ratio == 1
    assert torch.equal(posterior.sample(seeded()), posterior.mode())
    assert not posterior.kl().any()
    assert torch.equal(autoencoder.encode(video, return_dict=False)[0].mode(), posterior.mode())
    assert autoencoder.decode(posterior.mode(), return_dict=False)[0].shape == video.shape
    assert autoencoder.dtype == torch.float32
    assert autoencoder.device == torch.device("cpu")


@pytest.mark.parametrize("size", [(1, 3, 1, 40, 50), (1, 3, 11, 32, 32)])
def test_any_size_comes_back(autoencoder, size):
    assert autoencoder(torch.zeros(size)).sample.shape == size


def test_the_noise_is_the_generators(autoencoder, video):
    latents = autoencoder.encode(video).latent_dist.mode()
    first, again = (autoencoder.decode(latents, generator=seeded(1)).sample for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, autoencoder.decode(latents, generator=seeded(2)).sample)
    default, once_more = (autoencoder.decode(latents).sample for _ in range(2))
    assert torch.equal(default, once_more)


def test_slices_are_what_they_are_together(autoencoder, video):
    whole = autoencoder(video, generator=seeded()).sample
    autoencoder.enable_slicing()
    calls = []
    autoencoder.refiner.register_forward_pre_hook(lambda net, args: calls.append(len(args[0])))
    torch.testing.assert_close(autoencoder(video, generator=seeded()).sample, whole)
    assert set(calls) == {1}
    autoencoder.disable_slicing()
    torch.testing.assert_close(autoencoder(video, generator=seeded()).sample, whole)
    assert 2 in calls


def test_tiles_bound_what_the_networks_see(autoencoder):
    video, sides = torch.zeros(1, 3, 1, 64, 192), []
    whole = autoencoder(video).sample
    autoencoder.refiner.register_forward_pre_hook(lambda net, args: sides.append(args[0].shape[-1]))
    autoencoder.enable_tiling(tile_size=64)
    assert autoencoder(video).sample.shape == video.shape
    assert max(sides) * 8 == 64
    autoencoder.disable_tiling()
    assert torch.equal(autoencoder(video).sample, whole)
    assert max(sides) * 8 == 192


# Gradients.


def learning(autoencoder) -> set[str]:
    parts = {name: getattr(autoencoder, name) for name in PARTS}
    return {
        name
        for name, part in parts.items()
        if any(p.grad is not None and p.grad.any() for p in part.parameters())
    }


def test_in_training_every_network_learns(autoencoder, video):
    autoencoder.train()
    autoencoder(video).sample.square().mean().backward()
    assert learning(autoencoder) == set(PARTS)
    before = autoencoder(video).sample
    with torch.no_grad():
        for parameter in autoencoder.parameters():
            parameter -= 0.1 * parameter.grad
    assert not torch.equal(autoencoder(video).sample, before)  # no copy of what it was


def test_a_frozen_decoder_passes_gradients_on(autoencoder, video):
    autoencoder.requires_grad_(False)
    latents = autoencoder.encode(video).latent_dist.mode().requires_grad_()
    decoded = autoencoder.decode(latents).sample
    decoded.square().mean().backward()
    assert latents.grad.any()
    assert not learning(autoencoder)


def test_nothing_is_recorded_where_nobody_asks(autoencoder, video):
    assert not autoencoder(video).sample.requires_grad
    with torch.no_grad():
        assert not autoencoder.train()(video).sample.requires_grad


def test_gradients_of_the_latents_are_those_of_differences(autoencoder):
    latents = torch.randn(1, 16, 1, 1, 1, generator=seeded())
    direction = torch.randn(latents.shape, generator=seeded(2))

    def loss(z: torch.Tensor) -> torch.Tensor:
        return autoencoder.decode(z, num_inference_steps=2).sample.square().mean()

    latents.requires_grad_()
    loss(latents).backward()
    slope = (latents.grad * direction).sum().item()
    with torch.no_grad():
        step = 1e-2 * direction
        difference = (loss(latents + step) - loss(latents - step)).item() / 2e-2
    assert slope == pytest.approx(difference, rel=0.05)


def test_checkpointing_changes_no_gradient(autoencoder, video):
    other = copy.deepcopy(autoencoder)
    other.enable_gradient_checkpointing()
    for each in (autoencoder, other):
        each.train()(video[:1]).sample.square().mean().backward()
    for one, two in zip(autoencoder.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)


def test_half_precision(autoencoder, video):
    autoencoder.to(torch.bfloat16)
    decoded = autoencoder(video.bfloat16()).sample
    assert decoded.dtype == torch.bfloat16
    assert decoded.isfinite().all()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"latent_channels": 4}, "latent_channels=4, but this compressor makes 16"),
        ({"cascade": {"model_id": "x"}}, "the config has no 'compressor'"),
    ],
)
def test_descriptions_that_do_not_fit(config, change, match):
    with pytest.raises(ConfigError, match=match):
        AutoencoderCascadeV(**{"cascade": model_of(config), **change})
