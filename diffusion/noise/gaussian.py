"""The Gaussian diffusion process: its schedule, its conversions and its training loss.

Equation numbers: DDPM is Ho et al. 2020, IDDPM is Nichol & Dhariwal 2021, v-prediction is Salimans
& Ho 2022, rectified flow is Liu et al. 2022 (arXiv:2209.03003), min-SNR is Hang et al. 2023
(arXiv:2303.09556), logit-normal times are Esser et al. 2024 (arXiv:2403.03206). The process knows
neither the network nor the sampler.
"""

import math
from collections.abc import Callable
from typing import Final, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from diffusion.utils.errors import ConfigError
from diffusion.utils.ranges import Count, Positive

PredictionType = Literal["epsilon", "v_prediction", "sample", "flow_prediction"]
BetaSchedule = Literal["linear", "squaredcos_cap_v2"]
TimeDistribution = Literal["uniform", "logit_normal"]
PREDICTION_TYPES: Final[tuple[PredictionType, ...]] = get_args(PredictionType)


class LossTerms(NamedTuple):
    """Per video, (B,) each; `loss` is what training minimises the mean of."""

    loss: Tensor
    mse: Tensor  # unweighted
    vb: Tensor | None  # in bits per latent value; None without a learned variance


class Tables(NamedTuple):
    """What the process looks up at a timestep, (T,) float32 each, all on one device."""

    alpha: Tensor
    sigma: Tensor
    log_beta: Tensor
    posterior_log_variance: Tensor
    posterior_x0_weight: Tensor
    posterior_x_t_weight: Tensor


LEAST_LINEAR_STEPS: Final = 21  # with 20 the last beta would be 1


def linear_betas(num_steps: int) -> Tensor:
    """DDPM section 4, in the length of 1000 steps: (num_steps,) float64."""
    first, last = linear_range(num_steps)
    return torch.linspace(first, last, num_steps, dtype=torch.float64)


def linear_range(num_steps: int) -> tuple[float, float]:
    """The first and the last beta."""
    scale = 1000 / num_steps
    return scale * 1e-4, scale * 0.02


def cosine_betas(num_steps: int) -> Tensor:
    """IDDPM (17), each at most 0.999: (num_steps,) float64."""
    times = torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
    alphas_cumprod = ((times + 0.008) / 1.008 * math.pi / 2).cos().square()
    return (1 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(max=0.999)


# By the names that diffusers' samplers know them by.
BETA_SCHEDULES: Final[dict[BetaSchedule, Callable[[int], Tensor]]] = {
    "linear": linear_betas,
    "squaredcos_cap_v2": cosine_betas,
}


class GaussianDiffusion:
    """x_t = alpha_t * x0 + sigma_t * noise, with alpha_t^2 + sigma_t^2 = 1.

    With "flow_prediction" it is rectified flow instead: alpha_t + sigma_t = 1, times are fractions
    of `num_train_timesteps`, and the network predicts the velocity of x_t.

    Everywhere x0, x_t and noise are (B, C, F, H, W), and t is (B,), or (B, F) where frames have
    times of their own. With `learned_variance` a prediction has 2 * C channels, the variance last.

    beta_schedule: of the timesteps; a flow has none.
    time_distribution: of the times in training. "logit_normal": the middle is more likely.
    min_snr_gamma: weigh the loss by min-SNR, with this gamma (its authors' is 5). None: by nothing.
    """

    def __init__(
        self,
        *,
        num_train_timesteps: Count = 1000,
        beta_schedule: BetaSchedule = "linear",
        prediction_type: PredictionType = "epsilon",
        learned_variance: bool = False,
        time_distribution: TimeDistribution = "uniform",
        min_snr_gamma: Positive | None = None,
    ) -> None:
        _require("beta_schedule", beta_schedule, get_args(BetaSchedule))
        _require("prediction_type", prediction_type, PREDICTION_TYPES)
        _require("time_distribution", time_distribution, get_args(TimeDistribution))
        if learned_variance and prediction_type == "flow_prediction":
            raise ConfigError(
                "flow_prediction has no variance to learn; set learned_variance=False"
            )
        if min_snr_gamma is not None and min_snr_gamma <= 0:
            raise ConfigError(f"min_snr_gamma={min_snr_gamma} must be above 0, e.g. 5, or None")
        # fewer steps of the linear schedule would add more noise than there is room for
        linear = beta_schedule == "linear" and prediction_type != "flow_prediction"
        least = LEAST_LINEAR_STEPS if linear else 2
        if num_train_timesteps < least:
            raise ConfigError(f"num_train_timesteps={num_train_timesteps} must be at least {least}")
        self.num_train_timesteps = num_train_timesteps
        self.beta_schedule = beta_schedule
        self.prediction_type = prediction_type
        self.learned_variance = learned_variance
        self.time_distribution = time_distribution
        self.min_snr_gamma = min_snr_gamma

        self.betas = BETA_SCHEDULES[beta_schedule](num_train_timesteps)  # (T,) float64, as all here
        self.alphas_cumprod = (1 - self.betas).cumprod(0)
        before = torch.cat([torch.ones(1, dtype=torch.float64), self.alphas_cumprod[:-1]])
        self.posterior_variance = self.betas * (1 - before) / (1 - self.alphas_cumprod)  # DDPM (7)
        # the variance at t=0 is zero: its logarithm takes the value of t=1
        self.posterior_log_variance = self.posterior_variance.clone()
        self.posterior_log_variance[0] = self.posterior_variance[1]
        self.posterior_log_variance.log_()
        self.posterior_x0_weight = self.betas * before.sqrt() / (1 - self.alphas_cumprod)
        self.posterior_x_t_weight = (
            (1 - before) * (1 - self.betas).sqrt() / (1 - self.alphas_cumprod)
        )
        tables = Tables(
            alpha=self.alphas_cumprod.sqrt(),
            sigma=(1 - self.alphas_cumprod).sqrt(),
            log_beta=self.betas.log(),
            posterior_log_variance=self.posterior_log_variance,
            posterior_x0_weight=self.posterior_x0_weight,
            posterior_x_t_weight=self.posterior_x_t_weight,
        )
        cpu = torch.device("cpu")
        self._tables = {cpu: Tables(*(table.float() for table in tables))}  # by device

    def tables(self, device: torch.device) -> Tables:
        """The tables on a device: copied when it is first asked for, and kept there."""
        if device not in self._tables:
            tables = self._tables[torch.device("cpu")]
            self._tables[device] = Tables(*(table.to(device) for table in tables))
        return self._tables[device]

    def times(self, quantiles: Tensor) -> Tensor:
        """(B,) uniform in [0, 1) -> (B,) timesteps: whole, but for a flow."""
        fractions = quantiles.double()
        if self.time_distribution == "logit_normal":
            fractions = torch.special.ndtri(fractions).sigmoid()  # Esser et al., section 3.1
        times = fractions * self.num_train_timesteps
        return times.float() if self.is_flow else times.long()

    @property
    def is_flow(self) -> bool:
        return self.prediction_type == "flow_prediction"

    def marginal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at t, each (B, 1, 1 or F, 1, 1) float32. DDPM (4); rectified flow (1)."""
        if self.is_flow:
            sigma = _broadcast(t).float() / self.num_train_timesteps
            return 1 - sigma, sigma
        tables = self.tables(t.device)
        return _at(tables.alpha, t), _at(tables.sigma, t)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """-> x_t."""
        alpha, sigma = self.marginal(t)
        return alpha * x0 + sigma * noise

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network should predict."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return x0
        if self.is_flow:
            return noise - x0
        alpha, sigma = self.marginal(t)
        return alpha * noise - sigma * x0

    def without_variance(self, prediction: Tensor) -> Tensor:
        """The network's output (B, C or 2 * C, F, H, W) -> (B, C, F, H, W)."""
        return prediction.chunk(2, dim=1)[0] if self.learned_variance else prediction

    def predicted_x0(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The network's prediction (B, C, F, H, W) -> its x0."""
        alpha, sigma = self.marginal(t)
        if self.prediction_type == "epsilon":
            return (x_t - sigma * prediction) / alpha
        if self.prediction_type == "sample":
            return prediction
        if self.is_flow:
            return x_t - sigma * prediction
        return alpha * x_t - sigma * prediction

    def predicted_noise(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The network's prediction (B, C, F, H, W) -> its noise."""
        alpha, sigma = self.marginal(t)
        if self.prediction_type == "epsilon":
            return prediction
        if self.prediction_type == "sample":
            return (x_t - alpha * prediction) / sigma
        if self.is_flow:
            return x_t + alpha * prediction
        return alpha * prediction + sigma * x_t

    def ddim_step(self, prediction: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """x_t -> x_s without noise, s < t; s = -1 is the clean end. DDIM (12) with sigma = 0.

        prediction: (B, C or 2 * C, F, H, W); a learned variance has no part in it.
        """
        prediction = self.without_variance(prediction)
        x0 = self.predicted_x0(prediction, x_t, t)
        noise = self.predicted_noise(prediction, x_t, t)
        alpha, sigma = self.marginal(s.clamp(min=0))
        clean = _broadcast(s) < 0
        return torch.where(clean, x0, alpha * x0 + sigma * noise)

    def x0_between(self, x_t: Tensor, x_s: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The x0 that takes ddim_step from x_t at t to x_s at s; s = -1 is the clean end.

        Salimans & Ho 2022, algorithm 2: what a student should predict at t.
        """
        alpha_t, sigma_t = self.marginal(t)
        alpha_s, sigma_s = self.marginal(s.clamp(min=0))
        clean = _broadcast(s) < 0
        # (torch.where of a number would copy it to the device, which waits for it)
        ratio = (sigma_s / sigma_t).masked_fill(clean, 0)
        return (x_s - ratio * x_t) / (alpha_s.masked_fill(clean, 1) - ratio * alpha_t)

    def loss_weight(self, t: Tensor) -> Tensor:
        """Factor on the squared error of the prediction at t, (B, 1, 1 or F, 1, 1). Min-SNR (8).

        The error of x0 weighs min(SNR, gamma), SNR being alpha^2 / sigma^2. It is sigma^2 / alpha^2
        times that of epsilon, and sigma^2 times that of v and of a velocity (see `predicted_x0`).
        """
        alpha, sigma = self.marginal(t)
        if self.min_snr_gamma is None:
            return torch.ones_like(alpha)
        smaller = torch.minimum(
            alpha**2, self.min_snr_gamma * sigma**2
        )  # min(SNR, gamma) * sigma^2
        if self.prediction_type == "epsilon":
            return smaller / alpha**2
        if self.prediction_type == "sample":
            return smaller / sigma**2
        return smaller

    def posterior(self, x0: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of q(x_{t-1} | x_t, x0). DDPM (6), (7)."""
        tables = self.tables(t.device)
        mean = _at(tables.posterior_x0_weight, t) * x0 + _at(tables.posterior_x_t_weight, t) * x_t
        return mean, _at(tables.posterior_log_variance, t)

    def learned_log_variance(self, values: Tensor, t: Tensor) -> Tensor:
        """The network's variance channels, -1..1 but not bounded -> log variance. IDDPM (15)."""
        fraction, tables = (values + 1) / 2, self.tables(t.device)
        upper, lower = _at(tables.log_beta, t), _at(tables.posterior_log_variance, t)
        return fraction * upper + (1 - fraction) * lower

    def training_loss(
        self, prediction: Tensor, x0: Tensor, noise: Tensor, t: Tensor, x_t: Tensor | None = None
    ) -> LossTerms:
        """The simple loss, plus the variational bound where the variance is learned. IDDPM (16).

        prediction: (B, C or 2 * C, F, H, W). Give x_t where the network saw one that rounding sets
        apart from add_noise(x0, noise, t).
        """
        prediction, x0, noise = prediction.float(), x0.float(), noise.float()
        x_t = self.add_noise(x0, noise, t) if x_t is None else x_t.float()
        values = None
        if self.learned_variance:
            prediction, values = prediction.chunk(2, dim=1)
        error = (prediction - self.target(x0, noise, t)) ** 2
        mse = _video_mean(error)
        loss = mse if self.min_snr_gamma is None else _video_mean(self.loss_weight(t) * error)
        if values is None:
            return LossTerms(loss, mse, None)
        vb = self.variational_bound(prediction.detach(), values, x0, x_t, t)
        return LossTerms(loss + vb, mse, vb)

    def variational_bound(
        self, prediction: Tensor, values: Tensor, x0: Tensor, x_t: Tensor, t: Tensor
    ) -> Tensor:
        """One term of the bound, (B,), in bits per value: IDDPM (5), and (4) where t = 0.

        Training detaches `prediction`, so that the bound teaches the variance only (IDDPM 3.1).
        """
        true_mean, true_log_variance = self.posterior(x0, x_t, t)
        mean, _ = self.posterior(self.predicted_x0(prediction, x_t, t), x_t, t)
        log_variance = self.learned_log_variance(values, t)
        divergence = gaussian_kl(true_mean, true_log_variance, mean, log_variance)
        likelihood = discretized_log_likelihood(x0, mean, log_variance)
        bound = torch.where(_broadcast(t) == 0, -likelihood, divergence)
        return _video_mean(bound) / math.log(2)


def gaussian_kl(mean_p: Tensor, log_var_p: Tensor, mean_q: Tensor, log_var_q: Tensor) -> Tensor:
    """KL(p || q) of diagonal Gaussians, per value, in nats."""
    return 0.5 * (
        log_var_q
        - log_var_p
        + (log_var_p - log_var_q).exp()
        + (mean_p - mean_q) ** 2 * (-log_var_q).exp()
        - 1
    )


def discretized_log_likelihood(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """log p of the bin of x among 256 over [-1, 1], the outer ones open; in nats. DDPM (13).

    Meant for pixels; latents take it over, and leave [-1, 1], so that the published weights' loss
    stays comparable.
    """
    inverse_std = (-0.5 * log_variance).exp()
    cdf_above = _normal_cdf((x - mean + 1 / 255) * inverse_std)
    cdf_below = _normal_cdf((x - mean - 1 / 255) * inverse_std)
    mass = torch.where(x > 0.999, 1 - cdf_below, cdf_above - cdf_below)
    mass = torch.where(x < -0.999, cdf_above, mass)
    return mass.clamp(min=1e-12).log()


def _normal_cdf(x: Tensor) -> Tensor:
    """The tanh approximation (Page 1977) that the published loss was trained with."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _broadcast(t: Tensor) -> Tensor:
    """(B,) or (B, F) -> (B, 1, 1 or F, 1, 1)."""
    return t.reshape(len(t), 1, -1, 1, 1)


def _at(table: Tensor, t: Tensor) -> Tensor:
    """Values of a table at t, (B, 1, 1 or F, 1, 1)."""
    return table[_broadcast(t)]


def _video_mean(x: Tensor) -> Tensor:
    """(B, C, F, H, W) -> (B,)."""
    return x.flatten(1).mean(1)


def _require(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{option} {value!r} is not one of {', '.join(known)}")
