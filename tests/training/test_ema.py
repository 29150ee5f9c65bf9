import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from diffusion.training.ema import Average, ema_copy, update_ema


def layers(count):
    torch.manual_seed(count)
    return nn.Sequential(*(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)) for _ in range(count)))


def test_the_average_is_that_of_each_weight():
    module, network = layers(3), layers(5)[:3]
    network[0][0].weight.data = network[0][0].weight.data.T  # other layouts are no matter
    wanted = {
        name: 0.9 * mean + 0.1 * weight.detach()
        for (name, mean), weight in zip(
            network.named_parameters(), module.parameters(), strict=True
        )
    }
    weights = [{n: p.detach() for n, p in m.named_parameters()} for m in (network, module)]
    update_ema(*weights, decay=0.9, step=10**6)
    for name, mean in network.named_parameters():
        torch.testing.assert_close(mean.detach(), wanted[name])


class Operations(TorchDispatchMode):
    """Counts what a GPU would have to start."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view and func is not torch.ops.aten.detach.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("count", [1, 7])
def test_one_operation_takes_all_weights(count):
    module = layers(count)
    average = Average(ema_copy(module), module, decay=0.9)
    with Operations() as started:
        average.update(1)
    assert started.count == 2  # and another one all buffers


def test_buffers_are_those_of_the_network():
    module = layers(2)
    average = Average(ema_copy(module), module, decay=0.9)
    module(torch.randn(8, 3))
    average.update(1)
    for mean, buffer in zip(average.network.buffers(), module.buffers(), strict=True):
        assert torch.equal(mean, buffer)
