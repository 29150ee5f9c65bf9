import copy

import pytest
import torch
from torch import nn

from diffusion.training.muon import Muon, is_matrix, orthogonalized


@pytest.mark.parametrize("shape", [(48, 48), (40, 200), (200, 40)])
def test_all_directions_weigh_alike(shape):
    """Of a matrix whose directions differ by a factor of a thousand."""
    torch.manual_seed(0)
    rank = min(shape)
    left, _ = torch.linalg.qr(torch.randn(shape[0], rank))
    right, _ = torch.linalg.qr(torch.randn(shape[1], rank))
    matrix = left @ torch.logspace(0, -1.5, rank).diag() @ right.T
    out = orthogonalized(matrix)
    values = torch.linalg.svdvals(out)
    assert values.min() > 0.3
    assert values.max() < 1.3
    nearest = left @ right.T
    assert (out * nearest).sum() / (out.norm() * nearest.norm()) > 0.97


def test_only_matrices_are_made_orthogonal():
    assert is_matrix(nn.Linear(64, 96).weight)
    assert is_matrix(nn.Conv2d(32, 32, 3).weight)
    assert not is_matrix(nn.Conv2d(64, 64, 7, groups=64).weight)  # depthwise
    assert not is_matrix(torch.empty(6, 288))  # a table of modulations
    assert not is_matrix(nn.Linear(64, 64).bias)


def test_what_is_no_matrix_takes_the_steps_of_adamw():
    torch.manual_seed(0)
    ours, theirs = nn.Linear(8, 8), nn.Linear(8, 8)
    theirs.load_state_dict(ours.state_dict())
    x, y = torch.randn(64, 8), torch.randn(64, 8)
    optimizers = [
        Muon(ours.parameters(), lr=1e-2, weight_decay=0.1),
        torch.optim.AdamW(theirs.parameters(), lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1),
    ]
    for _ in range(10):
        for layer, optimizer in zip((ours, theirs), optimizers, strict=True):
            (layer(x) - y).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(ours.weight, theirs.weight, atol=1e-6, rtol=1e-5)


def test_an_update_of_a_matrix_is_as_large_as_the_learning_rate_says():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(64, 256))
    before = weight.detach().clone()
    weight.grad = 1e3 * torch.randn(64, 256)
    Muon([weight], lr=1e-2, weight_decay=0.0).step()
    assert (weight - before).square().mean().sqrt().item() == pytest.approx(0.2 * 1e-2, rel=0.2)


def test_the_number_of_steps_is_on_the_host_and_older_states_continue():
    """A number in a tensor on a GPU would have to be waited for at every step."""
    torch.manual_seed(0)
    layer = nn.Linear(4, 4)
    optimizer = Muon(layer.parameters(), lr=1e-2)

    def step():
        layer(torch.ones(1, 4)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        return layer.weight.detach().clone()

    step()
    state, weights = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(layer.state_dict())
    assert {type(s["step"]) for s in state["state"].values()} == {int}
    wanted = step()
    for values in state["state"].values():
        values["step"] = torch.tensor(float(values["step"]))  # as they were stored before
    optimizer.load_state_dict(state)
    layer.load_state_dict(weights)
    assert torch.equal(step(), wanted)
