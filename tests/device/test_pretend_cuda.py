"""The device that is not there raises, casts, draws and waits as CUDA does, with right values."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from pretend_cuda import CudaTensor, pretend_cuda
from torch import nn
from torch.utils.data import DataLoader


@pytest.fixture
def device():
    with pretend_cuda() as device:
        yield device


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))


PICTURES = torch.linspace(-1, 1, 2 * 3 * 4 * 4).view(2, 3, 4, 4)


def test_there_is_none_before_and_after():
    with pretend_cuda():
        assert torch.cuda.is_available()
        assert torch.zeros(1, device="cuda").device == torch.device("cuda", 0)
    assert torch.cuda.is_available() == bool(torch.cuda.device_count())
    assert type(torch.Generator()) is torch.Generator


@pytest.mark.parametrize(
    "mix",
    [
        lambda gpu, cpu: gpu + cpu,
        lambda gpu, cpu: cpu * gpu,
        lambda gpu, cpu: gpu @ cpu.T,
        lambda gpu, cpu: torch.cat([gpu, cpu]),
        lambda gpu, cpu: torch.where(gpu > 0, gpu, cpu),
        lambda gpu, cpu: F.linear(gpu, cpu),
        lambda gpu, cpu: gpu.add_(cpu),
        lambda gpu, cpu: cpu.add_(gpu),
        lambda gpu, cpu: cpu.add_(gpu.sum()),
        lambda gpu, cpu: cpu[gpu.long()],
        lambda gpu, cpu: torch.randn(2, generator=torch.Generator(), device="cuda"),
    ],
)
def test_what_mixes_devices_raises(device, mix):
    with pytest.raises(RuntimeError, match="device"):
        mix(torch.ones(2, 2, device="cuda"), torch.ones(2, 2))


def test_numpy_is_refused(device):
    with pytest.raises(RuntimeError, match="numpy"):
        torch.ones(2, device="cuda").numpy()


def test_numbers_of_the_cpu_mix_freely(device):
    x = torch.ones(2, 2, device="cuda")
    assert (x * torch.tensor(3.0)).tolist() == [[3.0, 3.0], [3.0, 3.0]]
    assert torch.where(x > 0, torch.tensor(2.0), x).device.type == "cuda"
    assert {stall.kind for stall in device.stalls} == {"to host"}  # of tolist


def test_values_gradients_and_updates_are_those_of_the_cpu(device):
    def trained(place: str) -> list[torch.Tensor]:
        net = network().to(place)
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
        for _ in range(3):
            net(PICTURES.to(place)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        return [tensor.cpu() for tensor in net.state_dict().values()]

    assert all(map(torch.equal, trained("cuda"), trained("cpu")))


def test_views_share_memory(device):
    x = torch.zeros(4, device="cuda")
    x.view(2, 2)[1].add_(1)
    x[:1] = 5
    assert x.tolist() == [5, 0, 1, 1]


def test_networks_move_with_their_parameters(device):
    net = network()
    weight = net[0].weight
    assert net.cuda()[0].weight is weight
    assert isinstance(weight, CudaTensor)
    assert isinstance(weight, nn.Parameter)
    assert net.bfloat16()[0].weight is weight
    assert weight.dtype == torch.bfloat16
    assert net.cpu()[0].weight is weight
    assert type(weight) is nn.Parameter
    assert weight.device.type == "cpu"


def test_copies_of_networks_are_their_own(device):
    net = network().cuda()
    other = copy.deepcopy(net)
    with torch.no_grad():
        other[0].weight.zero_()
    assert other[0].weight.requires_grad
    assert net[0].weight.any()
    other.load_state_dict(net.state_dict())
    assert torch.equal(other[0].weight, net[0].weight)


def test_data_can_be_replaced(device):
    """As when weights get another memory format."""
    net = network().cuda()
    weight, values = net[0].weight, net[0].weight.detach().cpu()
    weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    assert weight.is_contiguous(memory_format=torch.channels_last)
    net(PICTURES.cuda()).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.detach().cpu(), values)


def test_autocast_casts_as_on_cuda(device):
    x = torch.randn(2, 16, device="cuda")
    with torch.autocast("cuda", torch.float16):
        y = network().cuda()[3](x)
        assert y.dtype == torch.float16
        assert y.softmax(-1).dtype == torch.float32  # on a CPU it would stay
        assert F.layer_norm(y, (2,)).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert network().cuda()[3](x).dtype == torch.float32


def test_random_numbers_are_the_devices_own(device):
    torch.manual_seed(1)
    first = torch.randn(3)
    torch.manual_seed(1)
    torch.randn(3, device="cuda")
    assert torch.equal(torch.randn(3), first)
    drawn = [
        torch.rand(2, generator=torch.Generator("cuda").manual_seed(5), device="cuda").tolist()
        for _ in range(2)
    ]
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize(
    ("kind", "work"),
    [
        ("to device", lambda x, cpu: cpu.to("cuda")),
        ("to device", lambda x, cpu: cpu.to("cuda", non_blocking=True)),
        ("to device", lambda x, cpu: cpu.pin_memory().to("cuda")),
        ("to device", lambda x, cpu: torch.tensor([1.0, 2.0], device="cuda")),
        ("to device", lambda x, cpu: x.copy_(cpu)),
        ("to device", lambda x, cpu: x[torch.tensor([0, 1])]),
        ("to host", lambda x, cpu: x.cpu()),
        ("to host", lambda x, cpu: cpu.copy_(x)),
        ("to host", lambda x, cpu: x.tolist()),
        ("to host", lambda x, cpu: str(x)),
        ("synchronise", lambda x, cpu: x.sum().item()),
        ("synchronise", lambda x, cpu: bool(x.any())),
        ("synchronise", lambda x, cpu: torch.equal(x, x)),
        ("synchronise", lambda x, cpu: x.nonzero()),
        ("synchronise", lambda x, cpu: x[x > 0]),
        ("synchronise", lambda x, cpu: x.masked_select(x > 0)),
        ("synchronise", lambda x, cpu: x.unique()),
        ("synchronise", lambda x, cpu: torch.cuda.synchronize()),
    ],
)
def test_what_stalls_is_counted_with_its_line(device, kind, work):
    x = torch.ones(4, device="cuda")
    work(x, torch.ones(4))
    assert {stall.kind for stall in device.stalls} == {kind}
    assert all(stall.line.startswith("tests/device/test_pretend") for stall in device.stalls)


def test_what_does_not_stall_is_not_counted(device):
    pinned = torch.ones(4).pin_memory()
    x = pinned.to("cuda", non_blocking=True)
    x = (x * 2 + torch.ones_like(x)).to(torch.bfloat16)[1:, None]
    x[0] = 3
    x.to("cpu", non_blocking=True)
    torch.empty(4, pin_memory=True).copy_(torch.ones(4, device="cuda"), non_blocking=True)
    F.scaled_dot_product_attention(*(torch.ones(1, 1, 4, 8, device="cuda") for _ in range(3)))
    assert not device.stalls


def test_threads_have_the_same_device(device):
    def work() -> torch.Tensor:
        return torch.ones(2, device="cuda") + torch.ones(2).to("cuda")

    with ThreadPoolExecutor() as pool:
        assert pool.submit(work).result().tolist() == [2, 2]
    assert [stall.kind for stall in device.stalls] == ["to device", "to host"]


def test_a_loader_pins_its_batches(device):
    loader = DataLoader(torch.arange(6.0).split(2), batch_size=None, pin_memory=True)
    moved = [batch.to("cuda", non_blocking=True) for batch in loader]
    assert not device.stalls
    assert torch.cat(moved).tolist() == [0, 1, 2, 3, 4, 5]
