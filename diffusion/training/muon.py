"""Muon: momentum whose matrices are made orthogonal; AdamW for everything that is no matrix."""

from collections.abc import Iterable
from typing import Any, Final

import torch
from torch import Tensor, nn, optim

from diffusion.utils.ranges import Decay, Weight

NEWTON_SCHULZ: Final = (3.4445, -4.7750, 2.0315)
"""Coefficients of Jordan et al.: singular values from 0 to 1 go to about 1 in five rounds."""

SMALLEST_MATRIX: Final = 32
"""Shorter sides are no directions to equalise: tables of modulations, heads."""


class Muon(optim.Optimizer):
    """Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) with AdamW beside it.

    A weight counts as the matrix (out, everything else); both sides must have SMALLEST_MATRIX
    values. Its update has the size that AdamW's would have, so that one learning rate serves
    all (Liu et al. 2025, arXiv:2502.16982, eq. 4). Other parameters take AdamW's update.

    momentum: of matrices, Nesterov's. betas, eps: of the others.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-3,
        momentum: Decay = 0.95,
        betas: tuple[Decay, Decay] = (0.9, 0.99),
        eps: Weight = 1e-8,
        weight_decay: Weight = 0.01,
    ):
        options = {"momentum": momentum, "betas": betas, "eps": eps}
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, **options})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if is_matrix(parameter):
                    update = self._orthogonal(parameter, group)
                else:
                    update = self._adam(parameter, group)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(update, alpha=group["lr"])
        return loss

    def _orthogonal(self, parameter: Tensor, group: dict) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        mean = state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
        direction = parameter.grad.lerp(mean, group["momentum"]).flatten(1)
        # 0.2 is the root mean square of AdamW's updates, 1 / sqrt(long side) that of these
        size = 0.2 * max(direction.shape) ** 0.5
        return size * orthogonalized(direction).view(parameter.shape)

    def _adam(self, parameter: Tensor, group: dict) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["mean"] = torch.zeros_like(parameter)
            state["square"] = torch.zeros_like(parameter)
        # a number, which no GPU has to be asked for; older checkpoints have it as a tensor
        state["step"] = step = int(state.get("step", 0)) + 1
        (beta1, beta2), grad = group["betas"], parameter.grad
        mean = state["mean"].lerp_(grad, 1 - beta1) / (1 - beta1**step)
        square = state["square"].lerp_(grad.square(), 1 - beta2) / (1 - beta2**step)
        return mean / (square.sqrt() + group["eps"])


def is_matrix(parameter: Tensor) -> bool:
    if parameter.ndim < 2 or (parameter.ndim > 2 and parameter.shape[1] == 1):  # depthwise
        return False
    return min(parameter.flatten(1).shape) >= SMALLEST_MATRIX


def orthogonalized(matrix: Tensor, rounds: int = 5) -> Tensor:
    """(m, n) -> the nearest matrix with singular values of about 1, float32: U V^T of its SVD.

    Newton-Schulz iteration in bfloat16: the values land between 0.7 and 1.2, which is near enough.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrix.bfloat16()
    x = x / (x.norm() + 1e-7)
    wide = len(x) <= x.shape[1]
    x = x if wide else x.T
    for _ in range(rounds):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if wide else x.T).float()
