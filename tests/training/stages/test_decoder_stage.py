import copy

import torch
from test_picture_stage import PIXELS, only_the_change_moved
from test_refiner_stage import config_of, draws, video_batch

from diffusion.models.weights import save_weights
from diffusion.pipelines.cascade_builder import build_cascade
from diffusion.training.stages.decoder_stage import DecoderStage
from diffusion.training.stages.frozen import FrozenNetworks


def stage_of(config, **options):
    return DecoderStage(networks=FrozenNetworks(config), **{"steps": (1, 2), "rank": 4} | options)


def train(stage, steps: int) -> list[float]:
    """The pixels' term at each of some steps on one batch."""
    optimizer = torch.optim.Adam(stage.parts.parameters(), lr=1e-2)
    values = []
    for _ in range(steps):
        terms = stage.loss(video_batch(), draws())
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
        values.append(terms["pixels"].item())
    return values


def test_latents_are_those_that_the_cascade_restores(tiny_config):
    config, video = config_of(tiny_config), video_batch(count=1).video
    stage, cascade = stage_of(config, steps=(2,)), build_cascade(config)
    one, other = (stage.restored(video, draws(step, count=1)) for step in (0, 1))
    assert not torch.equal(one, other)  # of another seed in every step
    assert torch.equal(one, stage.restored(video, draws(0, count=1)))
    of_this_cascade = [cascade.restore(cascade.encode(video), steps=n, seed=3) for n in (1, 2)]
    distances = [(one - latents).std().item() for latents in of_this_cascade]
    assert one.shape == of_this_cascade[1].shape
    assert max(distances) < (one - cascade.encode_vae(video)).std()


def test_only_the_change_is_trained_and_saved(tiny_config):
    stage = stage_of(config_of(tiny_config))
    assert stage.parts.keys() == {"decoder_change", "discriminator"}
    before = copy.deepcopy(stage.vae.state_dict())
    train(stage, 2)
    only_the_change_moved(stage.parts["decoder_change"], before, stage.vae)


def test_the_decoder_learns_and_the_cascade_alone_uses_it(tiny_config, tmp_path):
    config, video = config_of(tiny_config), video_batch(count=1).video
    unchanged = build_cascade(config).reconstruct(video)
    stage = stage_of(config, **PIXELS)
    torch.testing.assert_close(stage.reconstruct(stage.parts, video), unchanged)
    values = train(stage, 12)
    assert max(values[-3:]) < min(values[:3])

    file = tmp_path / "decoder_change.safetensors"
    save_weights(stage.parts["decoder_change"], file, {})
    alone = build_cascade(config, only=("vae",))
    config["weights"]["decoder_change"] = str(file)
    got = build_cascade(config).reconstruct(video)
    torch.testing.assert_close(got, stage.reconstruct(stage.parts, video), rtol=0, atol=1e-5)
    assert (got - unchanged).abs().max() > 1e-3

    still_alone = build_cascade(config, only=("vae",))  # it decodes what it encoded
    latents = alone.encode_vae(video)
    assert torch.equal(alone.decode_vae(latents), still_alone.decode_vae(latents))
    # what trains other parts shows their result as the cascade would
    networks = FrozenNetworks(config)
    refiner = networks.get("refiner", video.device)
    shown = networks.cascade({"refiner": refiner}, video.device).reconstruct(video)
    torch.testing.assert_close(shown, got, rtol=0, atol=1e-5)


def test_it_goes_on_from_a_file(tiny_config, tmp_path):
    config, video = config_of(tiny_config), video_batch(count=1).video
    stage, file = stage_of(config), tmp_path / "decoder_change.safetensors"
    train(stage, 2)
    save_weights(stage.parts["decoder_change"], file, {})
    wider = stage_of(config, rank=6, init_from=str(file))
    wider.prepare(lambda step: None)
    got = wider.reconstruct(wider.parts, video)
    torch.testing.assert_close(got, stage.reconstruct(stage.parts, video), rtol=0, atol=1e-5)


def test_only_some_frames_of_every_clip_are_decoded(tiny_config):
    config, batch = config_of(tiny_config), video_batch(count=2)
    decoded = []
    for frames in (1, 99):
        stage = stage_of(config, picture_frames=frames)
        stage.picture_loss.register_forward_pre_hook(
            lambda _, given: decoded.append([len(x) for x in given[:2]])
        )
        stage.loss(batch, draws())
    whole = 2 * batch.video.shape[2]
    assert decoded == [[2, 2], [whole, whole]]
