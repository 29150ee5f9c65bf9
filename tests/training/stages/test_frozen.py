"""The networks beside those that train, and the cascades around them."""

import pytest
import torch
from test_refiner_stage import config_of, draws, stage_of, video_batch

from diffusion.pipelines.cascade_builder import build_cascade
from diffusion.training.stages.decoder_stage import DecoderStage
from diffusion.training.stages.distillation_stage import DistillationStage
from diffusion.training.stages.frozen import FrozenNetworks
from diffusion.training.stages.refiner_stage import JointStage, RefinerStage


def test_a_step_is_the_same_before_and_after_a_validation_in_another_precision(tiny_config):
    """Or resuming would not be exact: who resumes has not validated yet."""
    video = video_batch(count=1).video
    stage = DecoderStage(networks=FrozenNetworks(config_of(tiny_config)), steps=(2,), rank=4)

    def step() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return stage.restored(video, draws(count=1))

    before = step()
    shown = stage.reconstruct(stage.parts, video)
    assert torch.equal(step(), before)
    again = DecoderStage(networks=FrozenNetworks(config_of(tiny_config)), steps=(2,), rank=4)
    assert torch.equal(again.reconstruct(again.parts, video), shown)


@pytest.mark.parametrize("kind", [RefinerStage, JointStage, DistillationStage, DecoderStage])
def test_what_a_stage_shows_is_sampled_as_the_config_says(tiny_config, kind):
    config = config_of(tiny_config, "reconstruct.sampler=ddim", "reconstruct.steps=3")
    video = video_batch(count=1).video
    weights = config["weights"]["refiner"]
    if kind is DecoderStage:
        stage = DecoderStage(networks=FrozenNetworks(config))
    elif kind is DistillationStage:
        stage = stage_of(config, kind, teacher=weights, steps=3)
    else:
        stage = stage_of(config, kind)
        stage.parts["refiner"].load_state_dict(stage.networks.fresh("refiner").state_dict())
    shown = stage.reconstruct(stage.parts, video)
    cascade = build_cascade(config)
    wanted = cascade.reconstruct(video, sampler="ddim", steps=3)
    torch.testing.assert_close(shown, wanted, rtol=0, atol=1e-5)
    assert (shown - cascade.reconstruct(video, sampler="euler_a", steps=8)).abs().max() > 1e-3


def test_a_model_that_predicts_x0_is_shown_too(tiny_config):
    stage = stage_of(config_of(tiny_config, "noise.prediction_type=sample"))
    assert stage.reconstruct(stage.parts, video_batch(count=1).video).isfinite().all()


def test_targets_are_encoded_in_float32_where_training_computes_in_float16(tiny_config):
    """With a VAE like the published one, which cannot be in float16."""
    config = config_of(tiny_config)
    sizes = {"block_out_channels": [32, 32, 32, 32], "layers_per_block": 1}
    config["vae"] = {"type": "VideoVAE", **sizes}
    stage = stage_of(config)
    stage.networks = FrozenNetworks(config, random=True)
    batch = video_batch(count=1)
    exact = stage.encode(batch, draws(count=1))
    with torch.autocast("cpu", torch.float16):
        assert torch.equal(stage.encode(batch, draws(count=1)).target, exact.target)
        stage.networks.get("vae", batch.video.device).force_upcast = False
        assert not torch.equal(stage.encode(batch, draws(count=1)).target, exact.target)
