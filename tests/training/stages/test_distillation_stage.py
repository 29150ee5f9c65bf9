import pytest
import torch
from denoising import denoise
from test_refiner_stage import PUBLISHED, config_of, latent_batch, stage_of, teacher_file

from diffusion.noise.samplers import build_sampler
from diffusion.training.draws import Draws
from diffusion.training.stages.distillation_stage import DistillationStage
from diffusion.utils.errors import ConfigError, WeightsError


@pytest.fixture
def config(tiny_config):
    return config_of(tiny_config)


@pytest.fixture
def teacher(config, tmp_path):
    return teacher_file(config, tmp_path)


def student_of(config, steps, **options):
    config["reconstruct"].update(sampler="ddim", steps=steps)
    return stage_of(config, DistillationStage, steps=steps, **options)


def sampled(network, stage, condition, noise, steps):
    sampler = build_sampler(
        "ddim",
        num_inference_steps=steps,
        prediction_type=stage.noise.prediction_type,
        beta_schedule=stage.noise.beta_schedule,
    )
    return denoise(lambda x, t: network(x, t, condition), sampler, noise)


@pytest.mark.parametrize("steps", [1, 4, 7])
def test_times_are_those_of_the_sampler(config, teacher, steps):
    stage = student_of(config, steps, teacher=teacher)
    for count, factor in ((2 * steps, 1), (steps, 2)):
        sampler = build_sampler("ddim", num_inference_steps=count)
        ours = stage.time(factor * torch.arange(count, 0, -1))
        assert ours.tolist() == sampler.timesteps.tolist()
    assert stage.time(torch.tensor([0])).item() == -1


def test_a_student_learns_to_take_one_step_for_two(config, teacher):
    stage = student_of(config, 1, teacher=teacher, image_share=0.0)
    batch = latent_batch(count=1)
    condition = stage.conditioning.join(batch.semantic, batch.base)
    noise = torch.randn(1, 4, *condition.shape[2:], generator=torch.Generator().manual_seed(5))
    wanted = sampled(stage.teacher, stage, condition, noise, steps=2)
    student = stage.parts["refiner"]

    def error():
        with torch.no_grad():
            return (sampled(student, stage, condition, noise, 1) - wanted).square().mean().item()

    before = error()
    assert before > 0  # a copy of the teacher in one step is not the teacher in two
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    for step in range(60):
        draws = Draws(seed=0, step=step, first=0, count=1)
        sum(stage.loss(batch, draws).values()).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert error() < 0.3 * before


def test_the_teacher_stays_and_is_not_saved(config, teacher):
    stage = student_of(config, 2, teacher=teacher)
    assert list(stage.parts) == ["refiner"]
    before = {name: value.clone() for name, value in stage.teacher.state_dict().items()}
    sum(stage.loss(latent_batch(), Draws(seed=0, step=0, first=0, count=2)).values()).backward()
    assert all(parameter.grad is None for parameter in stage.teacher.parameters())
    assert all(torch.equal(before[n], v) for n, v in stage.teacher.state_dict().items())


def test_what_cannot_work_is_refused(config, teacher, tmp_path):
    with pytest.raises(ConfigError, match=r"steps=0 is not in 1\.\.500"):
        stage_of(config, DistillationStage, teacher=teacher, steps=0)
    with pytest.raises(ConfigError, match=r"steps=3, .* has 8; set reconstruct.steps=3"):
        stage_of(config, DistillationStage, teacher=teacher, steps=3)
    config["reconstruct"]["steps"] = 3
    with pytest.raises(ConfigError, match=r"has 'euler_a'; set reconstruct.sampler='ddim'"):
        stage_of(config, DistillationStage, teacher=teacher, steps=3)
    with pytest.raises(WeightsError, match="missing"):
        student_of(config, 1, teacher=str(tmp_path / "missing.safetensors"))


def test_a_model_with_learned_variance_is_distilled_too(tiny_config, tmp_path):
    """As the published one: the variance is learned beside, and steps the teacher's mean alone."""
    config = config_of(tiny_config, *PUBLISHED)
    teacher = teacher_file(config, tmp_path)
    stage = student_of(config, 2, teacher=teacher, image_share=0.0)

    def loss():
        draws = Draws(seed=0, step=0, first=0, count=2)
        return stage.loss(latent_batch(base=False), draws)["loss_diffusion"]

    before = loss()
    before.backward()
    assert all(p.grad.isfinite().all() for p in stage.parts["refiner"].parameters())
    with torch.no_grad():  # the teacher's channels of the variance, after the final norm
        stage.teacher.final_layer.linear.weight[-1] += 1
        assert torch.equal(loss(), before.detach())
        stage.teacher.final_layer.linear.weight[0] += 1
        assert not torch.equal(loss(), before.detach())
