import golden_data
import pytest
import torch
from torch import nn

from diffusion.training.optimizers import (
    DEFAULT_OPTIMIZER,
    OPTIMIZERS,
    build_optimizer,
    check_optimizer,
)
from diffusion.utils.errors import ConfigError


@pytest.mark.parametrize("name", OPTIMIZERS.classes)
def test_every_optimizer_descends(name):
    torch.manual_seed(0)
    layer = nn.Linear(8, 8)
    x, y = torch.randn(64, 8), torch.randn(64, 8)
    optimizer = build_optimizer({"type": name}, layer.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        loss = (layer(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_options_reach_the_optimizer():
    layer = nn.Linear(2, 2)
    optimizer = build_optimizer({"type": "CAME", "weight_decay": 0.5}, layer.parameters(), 1e-3)
    group = optimizer.param_groups[0]
    assert group["weight_decay"] == 0.5
    # the published ones are its defaults
    assert (group["betas"], group["eps"]) == ((0.9, 0.999, 0.9999), (1e-30, 1e-16))
    assert group["clip_threshold"] == 1.0


@pytest.mark.parametrize("name", golden_data.cases("came"))
def test_came_descends_as_in_the_published_training(name):
    """Clipped gradients, then updates: of matrices, kernels, tables and vectors."""
    meta, t = golden_data.load(name)
    weights = {key: nn.Parameter(t[f"p0.{key}"].clone()) for key in meta["order"]}
    optimizer = build_optimizer({"type": "CAME", "weight_decay": 0.0}, weights.values(), meta["lr"])
    for step in range(meta["steps"]):
        for key, weight in weights.items():
            weight.grad = t[f"g{step}.{key}"].clone()
        norm = nn.utils.clip_grad_norm_(weights.values(), meta["clip"])
        assert norm == pytest.approx(t["grad_norm_before_clip"][step].item(), rel=1e-5)
        for group in optimizer.param_groups:
            group["lr"] = t["lr_used"][step].item()
        optimizer.step()
        for key, weight in weights.items():
            before, after = t[f"p{step}.{key}"], t[f"p{step + 1}.{key}"]
            torch.testing.assert_close(weight.data, after, rtol=0, atol=1e-6)
            if group["lr"] > 0:  # the published warm-up began at 0
                assert not torch.equal(before, after)


def test_first_updates_of_came_by_hand():
    """No bias correction; a vector's step is its momentum, without confidence."""
    lr, gradients = 0.1, torch.tensor([[3.0, -1.0], [2.0, 0.5]])
    weight = nn.Parameter(torch.zeros(2))
    optimizer = build_optimizer({"type": "CAME"}, [weight], lr)
    square, momentum, expected = torch.zeros(2), torch.zeros(2), torch.zeros(2)
    for gradient in gradients:
        square = 0.999 * square + 0.001 * (gradient**2 + 1e-30)
        update = gradient / square.sqrt()
        update = update / (update.norm() / 2**0.5).clamp(min=1)
        momentum = 0.9 * momentum + 0.1 * update
        expected = expected - lr * momentum
        weight.grad = gradient.clone()
        optimizer.step()
    torch.testing.assert_close(weight.data, expected)


def test_frozen_weights_are_left_out():
    layer = nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    optimizer = build_optimizer(DEFAULT_OPTIMIZER, layer.parameters(), 1e-3)
    assert optimizer.param_groups[0]["params"] == [layer.weight]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"type": "AdamWW"}, "did you mean 'AdamW'"),
        ({"type": "AdamW", "weight_decy": 1}, "did you mean 'weight_decay'"),
        ({"type": "AdamW", "lr": 1}, "unknown key 'lr' in train.optimizer"),
        ({"weight_decay": 1}, "train.optimizer lacks the key 'type'"),
    ],
)
def test_mistakes_are_named(options, said):
    with pytest.raises(ConfigError, match=said):
        check_optimizer(options)


def test_values_are_checked_by_the_optimizer():
    with pytest.raises(ConfigError, match=r"train\.optimizer: Invalid beta parameter"):
        build_optimizer({"type": "AdamW", "betas": (2, 2)}, [nn.Parameter(torch.zeros(1))], 1e-3)
