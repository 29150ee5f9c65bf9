import copy

import pytest
import torch
from test_refiner_stage import config_of, draws, latent_batch, stage_of, teacher_file, video_batch

from diffusion.models.weights import save_weights
from diffusion.noise.samplers import build_sampler
from diffusion.pipelines.cascade_builder import build_cascade
from diffusion.training.stages.picture_stage import OneStepStage, PictureStage
from diffusion.utils.errors import ConfigError

PIXELS = {"adversarial_weight": 0.0, "perceptual_weight": 0.0}


@pytest.fixture
def config(tiny_config):
    return config_of(tiny_config)


@pytest.fixture
def teacher(config, tmp_path):
    return teacher_file(config, tmp_path)


def train(stage, steps: int, lr: float = 1e-2) -> list[float]:
    """The pixels' term at each of some steps on one batch."""
    optimizer = torch.optim.Adam(stage.parts.parameters(), lr=lr)
    values = []
    for step in range(steps):
        terms = stage.loss(video_batch(), draws(step % 2))
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
        values.append(terms["pixels"].item())
    return values


def only_the_change_moved(change, before, network) -> None:
    """before: the state dict of `network` before some steps."""
    after = network.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(layer.up.any() for layer in change.children())


def test_pictures_are_those_of_the_predicted_x0(config):
    """Where next to no noise was added the transformer has no say: pictures are the VAE's."""
    stage = stage_of(config, PictureStage, adversarial_weight=0.0, diffusion_weight=0.0)
    stage.times = lambda draws: torch.zeros(2).long()
    batch = video_batch()
    decoded = build_cascade(config).decode_vae(build_cascade(config).encode_vae(batch.video))
    terms = stage.loss(batch, draws())
    assert terms.keys() == {"pixels", "perceptual"}
    wanted = ((decoded - batch.video).square() + 1e-4).sqrt().mean().item()
    assert terms["pixels"].item() == pytest.approx(wanted, rel=0.05)


def test_the_refiner_learns_from_pictures_alone(config):
    stage = stage_of(config, PictureStage, diffusion_weight=0.0, **PIXELS)
    values = train(stage, 24)
    assert max(values[-4:]) < min(values[:4])


def test_every_term_trains_what_it_is_for(config):
    stage = stage_of(config, PictureStage)
    assert stage.parts.keys() == {"refiner", "discriminator"}
    before = copy.deepcopy(stage.parts.state_dict())
    frozen = copy.deepcopy(stage.networks.get("vae", torch.device("cpu")).state_dict())
    train(stage, 2)
    terms = stage.loss(video_batch(), draws())
    assert terms.keys() == {
        "pixels",
        "perceptual",
        "discriminator",
        "adversarial",
        "loss_diffusion",
    }
    after = stage.parts.state_dict()
    for part in stage.parts:
        assert any(not torch.equal(before[k], after[k]) for k in before if k.startswith(part))
    vae = stage.networks.get("vae", torch.device("cpu")).state_dict()
    assert all(torch.equal(frozen[key], vae[key]) for key in frozen)


def test_encoded_clips_have_no_pictures(config):
    with pytest.raises(ConfigError, match="PictureStage compares frames, so its data must be vid"):
        stage_of(config, PictureStage).loss(latent_batch(), draws())


def student_of(config, teacher, **options):
    config["reconstruct"]["steps"] = 1
    return stage_of(config, OneStepStage, teacher=teacher, **options)


class TestOneStep:
    def test_the_students_time_is_the_samplers_first(self, config, teacher):
        stage = student_of(config, teacher)
        options = {"num_inference_steps": 1, "euler_a_spacing": "angle"}
        for name in ("ddim", "euler_a"):
            sampler = build_sampler(name, prediction_type="v_prediction", **options)
            assert stage.times(draws()).tolist() == [int(sampler.timesteps[0])] * 2

    def test_only_the_change_is_trained_and_saved(self, config, teacher):
        stage = student_of(config, teacher)
        assert stage.parts.keys() == {"refiner_change", "discriminator"}
        before = copy.deepcopy(stage.refiner.state_dict())
        train(stage, 2)
        only_the_change_moved(stage.parts["refiner_change"], before, stage.refiner)

    def test_the_student_learns_and_commands_use_it(self, config, teacher, tmp_path):
        stage = student_of(config, teacher, **PIXELS)
        values = train(stage, 24)
        assert max(values[-4:]) < min(values[:4])

        change = tmp_path / "refiner_change.safetensors"
        save_weights(stage.parts["refiner_change"], change, {})
        config["weights"].update(refiner=teacher, refiner_change=str(change))
        video = video_batch(count=1).video
        wanted = stage.reconstruct(stage.parts, video)
        got = build_cascade(config).reconstruct(video)
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)
        config["weights"].pop("refiner_change")
        untaught = build_cascade(config).reconstruct(video)
        assert (untaught - wanted).abs().max() > 1e-3

    def test_a_config_that_samples_more_steps_is_refused(self, config, teacher):
        with pytest.raises(ConfigError, match=r"sampled with steps=1, .* set reconstruct.steps=1"):
            stage_of(config, OneStepStage, teacher=teacher)

    def test_a_flow_has_no_timesteps(self, config, teacher):
        config["noise"]["prediction_type"] = "flow_prediction"
        with pytest.raises(ConfigError, match="a flow does not have"):
            student_of(config, teacher)
