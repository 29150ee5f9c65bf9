import pytest
import torch
from torch import nn
from torch.func import functional_call

from diffusion.models.low_rank import LowRank, apply_low_rank, change
from diffusion.models.weights import save_weights
from diffusion.utils.errors import WeightsError


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Sequential(nn.SiLU(), nn.Linear(8, 5)))


def learnt(rank: int = 2) -> LowRank:
    low_rank = LowRank(network(), rank)
    for parameter in low_rank.parameters():
        nn.init.normal_(parameter)
    return low_rank


def test_it_starts_as_no_change():
    base = network()
    weights = LowRank(base, 2).changed(base)
    assert weights.keys() == {"0.weight", "1.1.weight"}
    assert all(torch.equal(value, base.get_parameter(name)) for name, value in weights.items())


def test_a_change_has_its_rank():
    base = network()
    for name, value in learnt(rank=2).changed(base).items():
        assert torch.linalg.matrix_rank(value - base.get_parameter(name)).item() == 2


def test_gradients_reach_the_change_alone():
    base, low_rank, x = network().requires_grad_(False), learnt(), torch.randn(3, 6)
    functional_call(base, low_rank.changed(base), (x,)).square().mean().backward()
    assert all(parameter.grad.any() for parameter in low_rank.parameters())


def test_a_changed_network_computes_what_was_trained(tmp_path):
    base, low_rank, x = network(), learnt(rank=3), torch.randn(3, 6)
    wanted = functional_call(base, low_rank.changed(base), (x,))
    save_weights(low_rank, tmp_path / "change.safetensors", {})
    from_file, in_place = network(), network()
    apply_low_rank(from_file, tmp_path / "change.safetensors")  # its rank is the file's
    change(in_place, low_rank)
    assert torch.equal(from_file(x), wanted)
    assert torch.equal(in_place(x), wanted)


def test_the_change_of_another_network_is_refused(tmp_path):
    save_weights(LowRank(nn.Sequential(nn.Linear(6, 7)), 2), tmp_path / "x.safetensors", {})
    save_weights(network(), tmp_path / "whole.safetensors", {})
    for file in ("x", "whole"):
        base = network()
        with pytest.raises(WeightsError, match=f"{file}.safetensors: not the weights of this"):
            apply_low_rank(base, tmp_path / f"{file}.safetensors")
        same = zip(base.parameters(), network().parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in same)
