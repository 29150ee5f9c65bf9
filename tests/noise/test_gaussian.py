import math
from itertools import product

import golden_data
import pytest
import recipe
import torch
from golden_data import to_frames, to_video
from torch.utils._python_dispatch import TorchDispatchMode

from diffusion.noise.gaussian import PREDICTION_TYPES, GaussianDiffusion, gaussian_kl
from diffusion.utils.errors import ConfigError

SHAPE = (6, 4, 2, 5, 3)
TIMES = torch.tensor([0, 1, 10, 250, 700, 999])


def draw(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """x0, noise: (B, C, F, H, W)."""
    return torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(seed)).unbind()


def test_schedule_matches_the_published_tables():
    _, t = golden_data.load("schedule")
    process = GaussianDiffusion()
    torch.testing.assert_close(process.betas, t["betas_linear"], rtol=1e-14, atol=0)
    for name, table in {
        "betas": process.betas,  # differences of cumulative products in the golden file
        "alphas_cumprod": process.alphas_cumprod,
        "posterior_variance": process.posterior_variance,
        "posterior_log_variance_clipped": process.posterior_log_variance,
        "posterior_mean_coef1": process.posterior_x0_weight,
        "posterior_mean_coef2": process.posterior_x_t_weight,
    }.items():
        torch.testing.assert_close(table, t[name], rtol=1e-12, atol=1e-15, msg=name)


@pytest.mark.parametrize("name", golden_data.cases("iddpm"))
def test_hybrid_loss_and_its_gradients_match(name):
    meta, t = golden_data.load(name)
    toy = recipe.ToyDenoiser(meta["toy_seed"], meta["in_channels"], requires_grad=True)
    process = GaussianDiffusion(learned_variance=True)
    x0, noise, times = to_video(t["x_start"], 1), to_video(t["noise"], 1), t["t"]
    x_t = process.add_noise(x0, noise, times)
    out = toy(torch.cat([to_frames(x_t), t["x_ref"]], dim=1), times)
    terms = process.training_loss(to_video(out, 1), x0, noise, times)
    mean, log_variance = process.posterior(x0, x_t, times)
    gradients = torch.autograd.grad(terms.loss.mean(), toy.parameters(), retain_graph=True)
    (of_bound,) = torch.autograd.grad(terms.vb.mean(), toy.w)
    for key, value in {
        "x_t": to_frames(x_t),
        "posterior_mean": to_frames(mean),
        "posterior_log_variance": to_frames(log_variance.expand_as(mean)),
        "loss": terms.loss,
        "mse": terms.mse,
        "vb": terms.vb,
        "grad_w": gradients[0],
        "grad_b": gradients[1],
        "grad_c": gradients[2],
        "grad_w_of_vb_mean": of_bound,
    }.items():
        bound = recipe.tolerance(meta, key)
        assert golden_data.relative_error(value, t[key]) <= bound, key


def test_marginals_keep_the_variance():
    alpha, sigma = GaussianDiffusion().marginal(torch.arange(1000))
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(1000, 1, 1, 1, 1))
    assert (alpha.flatten().diff() < 0).all()


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_conversions_invert_add_noise(prediction_type):
    process = GaussianDiffusion(prediction_type=prediction_type)
    x0, noise = draw()
    x_t = process.add_noise(x0, noise, TIMES)
    prediction = process.target(x0, noise, TIMES)
    # epsilon at t=999 divides by alpha = 0.006, sample at t=0 by sigma = 0.01
    torch.testing.assert_close(
        process.predicted_x0(prediction, x_t, TIMES), x0, atol=2e-4, rtol=1e-4
    )
    torch.testing.assert_close(
        process.predicted_noise(prediction, x_t, TIMES), noise, atol=2e-4, rtol=1e-4
    )


@pytest.mark.parametrize(
    ("prediction_type", "learned_variance"),
    # a flow has no variance to learn, see the last test
    [
        pair
        for pair in product(PREDICTION_TYPES, [False, True])
        if pair != ("flow_prediction", True)
    ],
)
def test_the_loss_of_the_truth_is_zero(prediction_type, learned_variance):
    process = GaussianDiffusion(prediction_type=prediction_type, learned_variance=learned_variance)
    x0, noise = draw()
    prediction = process.target(x0, noise, TIMES)
    if learned_variance:
        # -1 is the lower bound of the variance, that of the true posterior
        prediction = torch.cat([prediction, -torch.ones_like(prediction)], dim=1)
    terms = process.training_loss(prediction, x0, noise, TIMES)
    torch.testing.assert_close(terms.mse, torch.zeros(6))
    if learned_variance:
        torch.testing.assert_close(terms.vb[1:], torch.zeros(5), atol=1e-5, rtol=0)
        torch.testing.assert_close(terms.loss, terms.mse + terms.vb)
    else:
        assert terms.vb is None
        assert terms.loss is terms.mse


def test_the_bound_teaches_the_variance_only():
    process = GaussianDiffusion(learned_variance=True)
    x0, noise = draw()
    prediction = torch.randn(6, 8, *SHAPE[2:], requires_grad=True)
    (gradient,) = torch.autograd.grad(
        process.training_loss(prediction, x0, noise, TIMES).vb.sum(), prediction
    )
    assert torch.equal(gradient[:, :4], torch.zeros_like(gradient[:, :4]))
    assert (gradient[1:, 4:] != 0).any()


def test_losses_are_per_video():
    process = GaussianDiffusion(learned_variance=True)
    x0, noise = draw()
    prediction = torch.randn(6, 8, *SHAPE[2:])
    together = process.training_loss(prediction, x0, noise, TIMES)
    for i in range(6):
        one = slice(i, i + 1)
        alone = process.training_loss(prediction[one], x0[one], noise[one], TIMES[one])
        torch.testing.assert_close(alone.loss, together.loss[one])


def test_frames_may_have_times_of_their_own():
    process = GaussianDiffusion()
    x0, noise = draw()
    times = torch.stack([TIMES, TIMES.flip(0)], dim=1)  # (B, F)
    x_t = process.add_noise(x0, noise, times)
    torch.testing.assert_close(x_t[:, :, :1], process.add_noise(x0, noise, TIMES)[:, :, :1])
    torch.testing.assert_close(x_t[:, :, 1:], process.add_noise(x0, noise, TIMES.flip(0))[:, :, 1:])


def test_half_precision_predictions_are_judged_in_float32():
    process = GaussianDiffusion(learned_variance=True)
    x0, noise = draw()
    prediction = torch.randn(6, 8, *SHAPE[2:])
    terms = process.training_loss(prediction.bfloat16(), x0, noise, TIMES)
    assert terms.loss.dtype == torch.float32


def test_kl_agrees_with_torch():
    mean_p, mean_q, log_var_p, log_var_q = torch.randn(4, 50).unbind()
    p, q = (
        torch.distributions.Normal(mean, (0.5 * log_var).exp())
        for mean, log_var in ((mean_p, log_var_p), (mean_q, log_var_q))
    )
    expected = torch.distributions.kl_divergence(p, q)
    torch.testing.assert_close(gaussian_kl(mean_p, log_var_p, mean_q, log_var_q), expected)


def test_times_cover_every_step_alike():
    quantiles = (torch.arange(5000) + 0.5) / 5000
    assert torch.equal(
        GaussianDiffusion().times(quantiles), torch.arange(1000).repeat_interleave(5)
    )


def test_logit_normal_times_are_distributed_as_their_name_says():
    quantiles = (torch.arange(4000) + 0.5) / 4000
    for prediction_type in ("epsilon", "flow_prediction"):
        process = GaussianDiffusion(
            prediction_type=prediction_type, time_distribution="logit_normal"
        )
        fractions = (process.times(quantiles).double() + 0.5) / 1000
        logits = fractions.logit()
        assert logits.mean().item() == pytest.approx(0, abs=0.02)
        assert logits.std().item() == pytest.approx(1, abs=0.02)
        assert process.times(torch.zeros(1)) == 0  # the quantile that has no logit


def test_a_flow_goes_in_straight_lines_from_data_to_noise():
    process = GaussianDiffusion(prediction_type="flow_prediction")
    x0, noise = draw()
    times = process.times(torch.tensor([0.0, 0.1, 0.25, 0.5, 0.9, 0.999]))
    velocity = process.target(x0, noise, times)
    x_t = process.add_noise(x0, noise, times)
    torch.testing.assert_close(x_t[0], x0[0])
    torch.testing.assert_close(x_t, x0 + velocity * (times / 1000).view(-1, 1, 1, 1, 1))


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("gamma", [None, 5.0])
def test_the_gradient_is_the_weighted_error(prediction_type, gamma):
    process = GaussianDiffusion(prediction_type=prediction_type, min_snr_gamma=gamma)
    x0, noise = draw()
    times = TIMES.clamp(min=1)
    prediction = torch.randn(SHAPE, requires_grad=True)
    loss = process.training_loss(prediction, x0, noise, times).loss.sum()
    (gradient,) = torch.autograd.grad(loss, prediction)
    error = prediction.detach() - process.target(x0, noise, times)
    values_per_video = math.prod(SHAPE[1:])
    torch.testing.assert_close(gradient, 2 * process.loss_weight(times) * error / values_per_video)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_min_snr_weighs_the_error_of_x0_alike_whatever_is_predicted(prediction_type):
    process = GaussianDiffusion(prediction_type=prediction_type, min_snr_gamma=5.0)
    x0, noise = draw()
    times = TIMES.clamp(min=1)
    x_t = process.add_noise(x0, noise, times)
    truth = process.target(x0, noise, times)
    prediction = truth + 0.1 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    alpha, sigma = (value.double() for value in process.marginal(times))
    snr = (alpha / sigma).square().flatten()
    error = process.predicted_x0(prediction.double(), x_t.double(), times) - x0
    expected = snr.clamp(max=5) * error.square().flatten(1).mean(1)
    terms = process.training_loss(prediction, x0, noise, times)
    torch.testing.assert_close(terms.loss.double(), expected, rtol=5e-3, atol=1e-9)
    torch.testing.assert_close(terms.mse, (prediction - truth).square().flatten(1).mean(1))


def test_min_snr_weights_are_those_of_the_paper():
    times = torch.arange(1000)
    alpha, sigma = (value.double().flatten() for value in GaussianDiffusion().marginal(times))
    snr = (alpha / sigma) ** 2
    expected = {
        "epsilon": snr.clamp(max=5) / snr,
        "v_prediction": snr.clamp(max=5) / (snr + 1),
        "sample": snr.clamp(max=5),
    }
    for prediction_type, weights in expected.items():
        process = GaussianDiffusion(prediction_type=prediction_type, min_snr_gamma=5.0)
        weight = process.loss_weight(times).double().flatten()
        torch.testing.assert_close(weight, weights, rtol=1e-4, atol=1e-7)


def test_min_snr_leaves_the_bound_as_it_is():
    x0, noise = draw()
    prediction = torch.randn(6, 8, *SHAPE[2:])
    plain, weighted = (
        GaussianDiffusion(learned_variance=True, min_snr_gamma=gamma).training_loss(
            prediction, x0, noise, TIMES
        )
        for gamma in (None, 5.0)
    )
    torch.testing.assert_close(weighted.vb, plain.vb)
    assert (weighted.loss < plain.loss).any()


@pytest.mark.parametrize(
    ("option", "problem"),
    [
        ({"prediction_type": "eps"}, "is not one of"),
        ({"beta_schedule": "linaer"}, "is not one of"),
        ({"time_distribution": "normal"}, "is not one of"),
        ({"min_snr_gamma": 0}, "min_snr_gamma=0 must be above 0"),
        ({"prediction_type": "flow_prediction", "learned_variance": True}, "no variance to learn"),
    ],
)
def test_options_that_cannot_work_are_refused(option, problem):
    with pytest.raises(ConfigError, match=problem):
        GaussianDiffusion(**option)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_the_x0_between_two_times_takes_the_step(prediction_type):
    process = GaussianDiffusion(prediction_type=prediction_type, beta_schedule="squaredcos_cap_v2")
    x0, noise = draw()
    t = torch.tensor([1, 10, 250, 700, 900, 990])
    s = torch.tensor([0, 5, -1, 350, -1, 499]).clamp(min=0 if process.is_flow else -1)
    x_t, prediction = process.add_noise(x0, noise, t), draw(1)[0]
    x_s = process.ddim_step(prediction, x_t, t, s)
    wanted = process.predicted_x0(prediction, x_t, t)
    torch.testing.assert_close(process.x0_between(x_t, x_s, t, s), wanted, atol=2e-3, rtol=2e-3)


class Conversions(TorchDispatchMode):
    """Counts the operations that copy a tensor to another device or type."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._to_copy.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("learned_variance", [False, True])
def test_tables_are_copied_once(learned_variance):
    """Not at every step: a copy to a GPU from the CPU waits for it."""
    process = GaussianDiffusion(learned_variance=learned_variance)
    x0, noise = draw()
    prediction = torch.randn(6, 8 if learned_variance else 4, *SHAPE[2:])
    with Conversions() as counted:
        process.training_loss(prediction, x0, noise, TIMES)
        process.ddim_step(prediction, x0, TIMES, TIMES - 1)
        process.x0_between(x0, noise, TIMES, TIMES - 1)
    assert counted.count == 0
    elsewhere = torch.device("meta")
    assert process.tables(elsewhere) is process.tables(elsewhere)


def test_tables_have_the_digits_of_float64():
    process = GaussianDiffusion(beta_schedule="squaredcos_cap_v2")
    every = torch.arange(1000)
    alpha, sigma = process.marginal(every)
    assert torch.equal(alpha.flatten(), process.alphas_cumprod.sqrt().float())
    assert torch.equal(sigma.flatten(), (1 - process.alphas_cumprod).sqrt().float())
    upper = process.learned_log_variance(torch.ones(1000, 1, 1, 1, 1), every)
    assert torch.equal(upper.flatten(), process.betas.log().float())


def test_a_step_needs_no_variance():
    x_t, noise = draw()
    values = torch.randn_like(noise)
    t, s = torch.full((6,), 500), torch.full((6,), 250)
    with_variance = GaussianDiffusion(learned_variance=True)
    stepped = with_variance.ddim_step(torch.cat([noise, values], dim=1), x_t, t, s)
    assert torch.equal(stepped, GaussianDiffusion().ddim_step(noise, x_t, t, s))
