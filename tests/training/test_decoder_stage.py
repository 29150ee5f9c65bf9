import copy

import pytest
import torch
from test_refiner_stage import config_of, draws, video_batch

from diffusion.training.decoder_stage import DecoderStage
from diffusion.training.frozen import FrozenNetworks


def stage_of(path, **options):
    networks = FrozenNetworks(config_of(path))
    return DecoderStage(vae=networks.fresh("vae"), networks=networks, steps=(1, 2), **options)


def test_latents_are_restored_or_encoded_as_often_as_asked(tiny_config):
    video = video_batch(count=1).video
    encoded, restored = (stage_of(tiny_config, refined_share=share) for share in (0.0, 1.0))
    vae = encoded.parts["vae"]
    with torch.no_grad():
        mean = vae.encode(video)
        noise = (encoded.latents(video, draws(count=1)) - mean) / vae.posterior_std
    assert 0.8 < noise.std() < 1.2
    one, other = (restored.latents(video, draws(step, count=1)) for step in (0, 1))
    assert one.shape == other.shape == mean.shape
    assert (one - mean).std() > 2 * vae.posterior_std
    assert not torch.equal(one, other)  # of another seed in every step
    assert torch.equal(one, restored.latents(video, draws(0, count=1)))


@pytest.mark.parametrize("refined_share", [0.0, 1.0])
def test_only_the_decoder_learns(tiny_config, refined_share):
    stage = stage_of(tiny_config, refined_share=refined_share, perceptual_weight=0.0)
    before = copy.deepcopy(stage.parts["vae"].state_dict())
    optimizer = torch.optim.Adam([p for p in stage.parts.parameters() if p.requires_grad], lr=3e-3)
    values = []
    for _ in range(8):
        terms = stage.loss(video_batch(), draws())
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
        values.append(terms["pixels"].item())
    assert values[-1] < values[0]
    after = stage.parts["vae"].state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed
    assert all(key.startswith("decoder.") for key in changed)


def test_it_reconstructs_through_the_whole_cascade(tiny_config):
    stage, video = stage_of(tiny_config), video_batch(count=1).video
    whole = stage.networks.cascade(
        {"refiner": stage.networks.get("refiner", video.device)}, video.device
    ).reconstruct(video)
    assert torch.equal(stage.reconstruct(stage.parts, video), whole)
    with torch.no_grad():
        stage.parts["vae"].decoder.head.bias += 0.1
    assert not torch.equal(stage.reconstruct(stage.parts, video), whole)
    assert all(p.requires_grad for p in stage.parts["vae"].decoder.parameters())
