from itertools import product

import golden_data
import pytest
import recipe
import torch
from golden_data import to_frames, to_video
from golden_dit import build_dit

from diffusion.noise.gaussian import PREDICTION_TYPES, GaussianDiffusion
from diffusion.noise.samplers import SAMPLERS, build_sampler, denoise
from diffusion.utils.errors import ConfigError

NAMES = {"EulerA": "euler_a", "DDIM": "ddim", "DPMS": "dpmpp"}
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


def oracle(prediction_type: str, x0: torch.Tensor):
    """The denoiser that knows x0: its noise is whatever in x_t is not x0."""
    alphas_cumprod = GaussianDiffusion().alphas_cumprod.float()

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
    [pair for pair in product(SAMPLERS, PREDICTION_TYPES) if pair != ("euler_a", "sample")],
)
@pytest.mark.parametrize("steps", [1, 5, 8, 20])
def test_a_denoiser_that_knows_the_answer_recovers_it(name, prediction_type, steps):
    x0 = 3 * torch.randn(2, 4, 2, 3, 5)  # far outside [-1, 1]: no clipping may happen
    sampler = build_sampler(name, num_inference_steps=steps, prediction_type=prediction_type)
    predict = oracle(prediction_type, x0)
    out = denoise(predict, sampler, torch.randn_like(x0), torch.Generator().manual_seed(0))
    torch.testing.assert_close(out, x0, atol=0.02, rtol=0)


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


@pytest.mark.parametrize("name", SAMPLERS)
def test_sampling_starts_at_pure_noise(name):
    assert build_sampler(name, num_inference_steps=8).timesteps[0] == 999


def test_on_step_sees_every_step_and_the_last_is_the_result():
    seen = []
    sampler = build_sampler("ddim", num_inference_steps=3)
    out = denoise(
        lambda x, t: x, sampler, torch.randn(1, 4, 1, 2, 2), on_step=lambda *a: seen.append(a)
    )
    assert [i for i, _ in seen] == [0, 1, 2]
    assert torch.equal(seen[-1][1], out)


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


def test_unknown_spacing_is_refused():
    with pytest.raises(ConfigError, match="euler_a_spacing 'angel'"):
        build_sampler("euler_a", num_inference_steps=8, euler_a_spacing="angel")
