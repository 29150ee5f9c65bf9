from itertools import product

import golden_data
import pytest
import recipe
import torch
from denoising import denoise
from golden_data import to_frames, to_video
from golden_dit import build_dit

from diffusion.noise.gaussian import BETA_SCHEDULES, PREDICTION_TYPES, GaussianDiffusion
from diffusion.noise.samplers import (
    SAMPLERS,
    Trajectory,
    build_sampler,
    draw_noise,
    frame_generators,
)
from diffusion.noise.sampling import Sampling
from diffusion.utils.errors import ConfigError

NAMES = {"EulerA": "euler_a", "DDIM": "ddim", "DPMS": "dpmpp"}
DIFFUSIONS = [name for name in PREDICTION_TYPES if name != "flow_prediction"]
EULER_NOISE = "diffusers.schedulers.scheduling_euler_ancestral_discrete.randn_tensor"


def golden_network(meta: dict, condition: torch.Tensor):
    """x (1, 4, F, H, W), timestep (1,) -> noise estimate of the same shape."""
    num_frames = len(condition)
    if meta["model"] == "dit":
        model = build_dit(meta)
        return lambda x, t: model(x, t, to_video(condition, num_frames))[:, :4]
    toy = recipe.ToyDenoiser(meta["toy_seed"], meta["in_channels"])

    def network(x, t):
        frames = torch.cat([to_frames(x), condition], dim=1)
        return to_video(toy.eps(frames, t.expand(num_frames)), num_frames)

    return network


@pytest.mark.parametrize(
    "name",
    # one sampler with a real model is enough for every day; the toy cases cover all of them
    [
        pytest.param(name, marks=pytest.mark.slow) if name == "sample_dpms_dit" else name
        for name in golden_data.cases("sampler")
    ],
)
def test_published_sampling_is_replayed(name, monkeypatch):
    """Also DPM-Solver++ matches to the tolerance of float32: the diffusers solver is the same one.

    Its bound needs no allowance for another solver, because `published` sets the same times.
    """
    meta, t = golden_data.load(name)
    num_frames = len(t["z"])
    network = golden_network(meta, t["x_ref"])
    seen_x, seen_t = [], []

    def predict(x, timestep):
        seen_x.append(to_frames(x))
        seen_t.append(timestep[0].float())
        return network(x, timestep)

    if "step_noise" in t:
        recorded = iter(t["step_noise"])
        monkeypatch.setattr(EULER_NOISE, lambda *_, **__: to_video(next(recorded), num_frames))
    sampler = build_sampler(
        NAMES[meta["scheduler"]], num_inference_steps=meta["steps"], published=True
    )
    out = denoise(predict, sampler, to_video(t["z"], num_frames))
    torch.testing.assert_close(torch.stack(seen_t), t["model_timesteps"], atol=1e-4, rtol=0)
    for key, value in {"model_x": torch.stack(seen_x), "out": to_frames(out)}.items():
        assert golden_data.relative_error(value, t[key]) <= recipe.tolerance(meta, key), key


@pytest.mark.parametrize("entry", sorted(golden_data.TABLES["sampler_timesteps"]))
def test_published_timesteps(entry):
    published, steps = entry.split("_")
    sampler = build_sampler(NAMES[published], num_inference_steps=int(steps), published=True)
    assert sampler.timesteps.tolist() == golden_data.TABLES["sampler_timesteps"][entry]


def oracle(prediction_type: str, x0: torch.Tensor, beta_schedule: str = "linear"):
    """The denoiser that knows x0: its noise is whatever in x_t is not x0."""
    alphas_cumprod = GaussianDiffusion(beta_schedule=beta_schedule).alphas_cumprod.float()

    def predict(x_t, timestep):
        low = timestep.long()  # some samplers ask between two timesteps
        high = (low + 1).clamp(max=999)
        alpha = alphas_cumprod[low].lerp(alphas_cumprod[high], (timestep - low).float()).sqrt()
        alpha = alpha.view(-1, 1, 1, 1, 1)
        sigma = (1 - alpha**2).sqrt()
        noise = (x_t - alpha * x0) / sigma
        answers = {"epsilon": noise, "sample": x0, "v_prediction": alpha * noise - sigma * x0}
        return answers[prediction_type]

    return predict


@pytest.mark.parametrize(
    ("name", "prediction_type"),
    # euler_a refuses "sample", see the last test
    [pair for pair in product(SAMPLERS, DIFFUSIONS) if pair != ("euler_a", "sample")],
)
@pytest.mark.parametrize("steps", [1, 5, 8, 20])
def test_a_denoiser_that_knows_the_answer_recovers_it(name, prediction_type, steps):
    x0 = 3 * torch.randn(2, 4, 2, 3, 5)  # far outside [-1, 1]: no clipping may happen
    sampler = build_sampler(name, num_inference_steps=steps, prediction_type=prediction_type)
    predict = oracle(prediction_type, x0)
    out = denoise(predict, sampler, torch.randn_like(x0), torch.Generator().manual_seed(0))
    torch.testing.assert_close(out, x0, atol=0.02, rtol=0)


@pytest.mark.parametrize("prediction_type", DIFFUSIONS)
def test_ddim_takes_the_steps_of_the_process(prediction_type):
    """A distilled student learns them from the process and is sampled by the scheduler."""
    process = GaussianDiffusion(prediction_type=prediction_type)
    sampler = build_sampler("ddim", num_inference_steps=4, prediction_type=prediction_type)
    x = noise = torch.randn(1, 4, 2, 3, 3)
    ends = [*sampler.timesteps[1:].tolist(), -1]
    for t, s in zip(sampler.timesteps.tolist(), ends, strict=True):
        t, s = torch.tensor([t]), torch.tensor([s])
        x = process.ddim_step((0.3 * x).sin(), x, t, s)
    out = denoise(lambda x_t, t: (0.3 * x_t).sin(), sampler, noise)
    torch.testing.assert_close(out, x, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_generator_decides_the_result_and_the_sampler_can_be_used_again(name):
    sampler = build_sampler(name, num_inference_steps=4)
    noise = torch.randn(1, 4, 2, 3, 3)

    def sample(seed):
        generator = torch.Generator().manual_seed(seed)
        return denoise(lambda x, t: 0.3 * x, sampler, noise, generator)

    torch.manual_seed(1)
    first = sample(0)
    torch.manual_seed(2)
    assert torch.equal(sample(0), first)
    assert torch.equal(sample(1), first) == (name != "euler_a")  # the others draw nothing


def flow_sampler(name: str, steps: int):
    return build_sampler(name, num_inference_steps=steps, prediction_type="flow_prediction")


@pytest.mark.parametrize("name", ["euler", "dpmpp"])
@pytest.mark.parametrize("steps", [1, 8])
def test_a_flow_that_knows_the_answer_recovers_it(name, steps):
    process = GaussianDiffusion(prediction_type="flow_prediction")
    x0 = 3 * torch.randn(2, 4, 2, 3, 5)

    def velocity(x_t, t):
        _, sigma = process.marginal(t)
        return (x_t - x0) / sigma

    out = denoise(velocity, flow_sampler(name, steps), torch.randn_like(x0))
    # dpmpp says its times in whole steps
    torch.testing.assert_close(out, x0, atol=1e-4 if name == "euler" else 0.02, rtol=0)


@pytest.mark.parametrize(("name", "steps"), [("euler", 64), ("dpmpp", 24)])
def test_a_flow_with_the_best_velocity_samples_the_data(name, steps):
    """Gaussian data: E[noise - x0 | x_t] is known, and maps unit noise to the data's spread."""
    mean, std = 0.5, 0.3
    process = GaussianDiffusion(prediction_type="flow_prediction")

    def velocity(x_t, t):
        alpha, sigma = process.marginal(t)
        gain = (sigma - alpha * std**2) / (alpha**2 * std**2 + sigma**2)
        return gain * (x_t - alpha * mean) - mean

    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 4, 1, 100, 100, generator=generator)
    out = denoise(velocity, flow_sampler(name, steps), noise, generator)
    assert out.mean().item() == pytest.approx(mean, abs=0.01)
    assert out.std().item() == pytest.approx(std, abs=0.01)


def test_a_flow_refuses_samplers_of_diffusions():
    with pytest.raises(ConfigError, match="'euler_a' cannot follow a flow; use 'euler' or 'dpmpp'"):
        flow_sampler("euler_a", 4)


@pytest.mark.parametrize("name", SAMPLERS)
def test_sampling_starts_at_pure_noise(name):
    assert build_sampler(name, num_inference_steps=8).timesteps[0] == 999


def test_half_precision_predictions_leave_the_latents_in_float32():
    sampler = build_sampler("euler_a", num_inference_steps=3)
    noise = torch.randn(1, 4, 1, 2, 2).bfloat16()
    assert denoise(lambda x, t: x.bfloat16(), sampler, noise).dtype == torch.float32


def test_the_published_ddim_clips_and_ours_does_not():
    for published in (False, True):
        sampler = build_sampler("ddim", num_inference_steps=8, published=published)
        assert sampler.config.clip_sample == published


@pytest.mark.parametrize(
    ("given", "meant"), [("EulerA", "euler_a"), ("euler-a", "euler_a"), ("dpm++", "dpmpp")]
)
def test_an_unknown_sampler_names_the_nearest(given, meant):
    with pytest.raises(ConfigError, match=f"did you mean '{meant}'"):
        build_sampler(given, num_inference_steps=8)


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ConfigError, match="1 to 1000"):
        build_sampler("ddim", num_inference_steps=0)
    with pytest.raises(ConfigError, match="use 'ddim'"):
        build_sampler("euler_a", num_inference_steps=8, prediction_type="sample")


def test_spacing_by_angle_is_even_in_angle_and_ends_at_zero():
    sampler = build_sampler("euler_a", num_inference_steps=8, euler_a_spacing="angle")
    angles = sampler.sigmas.double().atan()
    torch.testing.assert_close(angles.diff(), torch.full((8,), -angles[0].item() / 8).double())
    assert sampler.timesteps[0] == 999
    assert (sampler.timesteps.diff() < 0).all()


def test_spacing_by_angle_still_recovers_x0():
    x0 = torch.randn(1, 4, 2, 6, 6)
    sampler = build_sampler(
        "euler_a",
        num_inference_steps=8,
        prediction_type="v_prediction",
        euler_a_spacing="angle",
    )
    out = denoise(oracle("v_prediction", x0), sampler, torch.randn_like(x0))
    torch.testing.assert_close(out, x0, atol=2e-2, rtol=0)


@pytest.mark.parametrize("spacing", ["even", "angle"])
@pytest.mark.parametrize("schedule", BETA_SCHEDULES)
def test_ancestral_steps_of_any_number_stay_finite(schedule, spacing):
    """Cosine betas start at a sigma of 20,000, where float32 loses what a step needs."""
    x0 = torch.randn(1, 4, 2, 3, 3)
    predict = oracle("v_prediction", x0, schedule)
    for steps in range(1, 31):
        sampler = build_sampler(
            "euler_a",
            num_inference_steps=steps,
            prediction_type="v_prediction",
            beta_schedule=schedule,
            euler_a_spacing=spacing,
        )
        out = denoise(predict, sampler, torch.randn_like(x0), torch.Generator().manual_seed(0))
        torch.testing.assert_close(out, x0, atol=5e-2, rtol=0, msg=f"{steps} steps")


def test_unknown_spacing_is_refused():
    with pytest.raises(ConfigError, match="euler_a_spacing 'angel'"):
        build_sampler("euler_a", num_inference_steps=8, euler_a_spacing="angel")


@pytest.mark.parametrize("name", ["euler_a", "ddim", "dpmpp"])
@pytest.mark.parametrize("schedule", BETA_SCHEDULES)
def test_samplers_follow_the_schedule_of_training(name, schedule):
    sampler = build_sampler(name, num_inference_steps=8, beta_schedule=schedule)
    trained = GaussianDiffusion(beta_schedule=schedule).alphas_cumprod.float()
    torch.testing.assert_close(sampler.alphas_cumprod, trained, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("size", [(2, 3), (4, 8)])  # torch draws 16 and more otherwise than fewer
def test_noise_is_what_the_schedulers_would_draw(size):
    """Of old: by one generator for each frame, on the CPU, first the start and then every step."""
    sampler = build_sampler("euler_a", num_inference_steps=3)
    noise, scheduler = torch.randn(3, 4, *size), build_sampler("euler_a", num_inference_steps=3)
    trajectory = Trajectory(sampler, noise, frame_generators(7, range(3)))
    generators, x = frame_generators(7, range(3)), noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        prediction = 0.3 * scheduler.scale_model_input(x, t)
        torch.testing.assert_close(trajectory.model_input(), prediction / 0.3, rtol=1e-6, atol=0)
        x = scheduler.step(prediction, t, x, generator=generators).prev_sample
        trajectory.step(prediction)
        assert torch.equal(trajectory.x, x)


def test_drawn_noise_is_that_of_single_frames():
    generators = frame_generators(3, range(2), batch=2)
    drawn = draw_noise((4, 4, 5, 3), generators, torch.device("cpu"))
    for frame, generator in zip(drawn, frame_generators(3, range(2), batch=2), strict=True):
        assert torch.equal(frame, torch.randn(4, 5, 3, generator=generator))
    one = draw_noise((4, 5), torch.Generator().manual_seed(2), torch.device("cpu"))
    assert torch.equal(one, torch.randn(4, 5, generator=torch.Generator().manual_seed(2)))


class TestSampling:
    def test_what_cannot_be_is_refused(self):
        with pytest.raises(ConfigError, match="unknown sampler 'eular_a', did you mean 'euler_a'"):
            Sampling("eular_a")
        with pytest.raises(ConfigError, match="steps=0 must be at least 1"):
            Sampling(steps=0)
        with pytest.raises(ConfigError, match="euler_a_spacing 'angel'"):
            Sampling(euler_a_spacing="angel")

    def test_what_is_given_replaces_what_holds(self):
        held = Sampling("ddim", 4, published=True)
        assert held.changed() == held
        assert held.changed(steps=2) == Sampling("ddim", 2, published=True)
        assert held.changed("euler").sampler == "euler"

    @pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
    def test_every_model_has_a_sampler(self, prediction_type):
        process = GaussianDiffusion(prediction_type=prediction_type)
        sampling = Sampling(steps=3).of(process)
        assert len(sampling.scheduler(process).timesteps) == 3
        assert Sampling(steps=3).scheduler(process).config == sampling.scheduler(process).config


@pytest.mark.parametrize("beta_schedule", BETA_SCHEDULES)
@pytest.mark.parametrize("num_train_timesteps", [100, 1000])
@pytest.mark.parametrize("name", ["euler_a", "ddim", "dpmpp", "euler"])
def test_samplers_follow_the_process_whatever_its_length(name, num_train_timesteps, beta_schedule):
    process = {"num_train_timesteps": num_train_timesteps, "beta_schedule": beta_schedule}
    sampler = build_sampler(name, num_inference_steps=4, **process)
    expected = GaussianDiffusion(**process).alphas_cumprod
    torch.testing.assert_close(sampler.alphas_cumprod.double(), expected, rtol=0, atol=1e-6)
