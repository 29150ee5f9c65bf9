import pytest
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, PartialState
from pretend_cuda import pretend_cuda
from torch.distributed.fsdp import MixedPrecisionPolicy

from diffusion.training.processes import Sharding, build_accelerator, join_processes
from diffusion.utils.errors import UserError


@pytest.fixture
def gpu():
    AcceleratorState._reset_state(reset_partial_state=True)
    with pretend_cuda():
        yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("name", ["cuda", "cuda:0"])
def test_the_device_has_a_number(gpu, name):
    """As tensors have that are there: "cuda" and "cuda:0" would never be one device."""
    assert join_processes(torch.device(name)).device == torch.device("cuda", 0)
    accelerator = build_accelerator(torch.device(name), torch.bfloat16, 1, None, frozen=[])
    assert accelerator.device == torch.device("cuda", 0) == torch.ones(1, device="cuda").device


def test_nccl_is_told_the_device(gpu, monkeypatch):
    """It would guess it from the rank, and open another GPU if that is wrong."""
    monkeypatch.setenv("LOCAL_RANK", "0")
    told = []

    def remember(**options):
        told.append(options)
        raise RuntimeError("no NCCL here")

    monkeypatch.setattr(dist, "init_process_group", remember)
    with pytest.raises(RuntimeError, match="no NCCL here"):
        join_processes(torch.device("cuda"))
    assert told == [{"backend": "nccl", "device_id": torch.device("cuda", 0)}]
    PartialState._reset_state()


def test_processes_do_not_share_a_gpu(gpu, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(UserError, match="cuda:0: several processes take the GPUs of their"):
        join_processes(torch.device("cuda:0"))
    with pytest.raises(UserError, match="process 2 of this machine has no GPU"):
        join_processes(torch.device("cuda"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradients_are_summed_in_float32_whatever_is_gathered(dtype):
    policy = Sharding().plugin(dtype, frozen=[]).mixed_precision_policy
    gathered = None if dtype == torch.float32 else dtype
    assert policy == MixedPrecisionPolicy(
        param_dtype=gathered, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
