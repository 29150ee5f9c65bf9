import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.func import functional_call

from diffusion.models.low_rank import LowRank, apply_low_rank, change, layers_of
from diffusion.models.weights import save_weights
from diffusion.utils.errors import WeightsError

LAYERS = ["0", "1.1"]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Sequential(nn.SiLU(), nn.Linear(8, 5)))


def learnt(rank: int = 2) -> LowRank:
    low_rank = LowRank.beside(network(), rank, LAYERS)
    for parameter in low_rank.parameters():
        nn.init.normal_(parameter)
    return low_rank


def test_it_starts_as_no_change():
    base = network()
    weights = LowRank.beside(base, 2, LAYERS).changed(base)
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
    other = nn.Sequential(nn.Linear(6, 7))
    save_weights(LowRank.beside(other, 2, ["0"]), tmp_path / "x.safetensors", {})
    save_weights(network(), tmp_path / "whole.safetensors", {})
    errors = {"x": r"0.up is \(7, 2\) but this LowRank needs \(8, 2\)", "whole": "not the weights"}
    for file, error in errors.items():
        base = network()
        with pytest.raises(WeightsError, match=rf"{file}.safetensors: {error}"):
            apply_low_rank(base, tmp_path / f"{file}.safetensors")
        same = zip(base.parameters(), network().parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in same)


def test_convolutions_are_changed_alike(tmp_path):
    torch.manual_seed(0)
    base = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 4, 1)).requires_grad_(False)
    assert layers_of(base, nn.Conv2d) == ["0", "2"]
    low_rank = LowRank.beside(base, 2, ["0"])
    assert {k: tuple(v.shape) for k, v in low_rank.state_dict().items()} == {
        "0.down": (2, 27),
        "0.up": (8, 2),
    }
    nn.init.normal_(low_rank.get_parameter("0.up"))
    x, before = torch.randn(1, 3, 6, 6), [p.clone() for p in base.parameters()]
    wanted = functional_call(base, low_rank.changed(base), (x,))
    save_weights(low_rank, tmp_path / "change.safetensors", {})
    apply_low_rank(base, tmp_path / "change.safetensors")
    assert torch.equal(base(x), wanted)
    assert [torch.equal(a, b) for a, b in zip(before, base.parameters(), strict=True)] == [
        *(False, True),
        *(True, True),
    ]


def test_a_change_goes_on_with_a_higher_rank(tmp_path):
    base, low_rank, file = network(), learnt(rank=2), tmp_path / "change.safetensors"
    save_weights(low_rank, file, {})
    for rank in (2, 3):
        wider = LowRank.beside(base, rank, LAYERS)
        drawn = wider.get_parameter("0.down").detach().clone()
        wider.start_from(file)
        for name, value in low_rank.changed(base).items():
            torch.testing.assert_close(wider.changed(base)[name], value)
        assert torch.equal(wider.get_parameter("0.down")[2:], drawn[2:])  # free to learn
    for refused, rank in ((LAYERS, 1), (LAYERS[:1], 3)):
        with pytest.raises(WeightsError, match=r"change\.safetensors: "):
            LowRank.beside(base, rank, refused).start_from(file)
    flat = {key: value.flatten() for key, value in low_rank.state_dict().items()}
    save_file(flat, tmp_path / "flat.safetensors")
    with pytest.raises(WeightsError, match=r"flat\.safetensors: "):
        LowRank.beside(base, 3, LAYERS).start_from(tmp_path / "flat.safetensors")
    other = nn.Sequential(nn.Linear(7, 8), nn.Sequential(nn.SiLU(), nn.Linear(8, 5)))
    with pytest.raises(WeightsError, match=r"0.down is \(2, 6\) but this LowRank needs \(3, 7\)"):
        LowRank.beside(other, 3, LAYERS).start_from(file)
