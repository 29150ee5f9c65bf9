import pytest
import torch

from diffusion.utils.compute import Compute, inference

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def switches() -> tuple[bool, bool, bool]:
    cudnn = torch.backends.cudnn
    return torch.backends.cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark


def test_options_that_are_not_given_are_on_where_they_gain():
    off = Compute(tf32=False, cudnn_benchmark=False, compile=False, channels_last=False)
    assert Compute().on(CPU, torch.bfloat16) == off
    assert Compute().on(GPU, torch.float32) == Compute(False, True, False, False)
    assert Compute().on(GPU, torch.bfloat16) == Compute(True, True, False, True)
    assert Compute(tf32=True).on(GPU, torch.float32).tf32
    assert off.on(GPU, torch.bfloat16) == off


@pytest.mark.parametrize("on", [True, False])
def test_the_process_computes_so_within_the_block_alone(on):
    before = switches()
    with Compute(tf32=on, cudnn_benchmark=on).applied():
        assert switches() == (on, on, on)
    assert switches() == before
    with pytest.raises(ZeroDivisionError), Compute(tf32=not on).applied():
        raise ZeroDivisionError
    assert switches() == before


def test_inference_is_in_the_given_precision_and_without_gradients():
    layer, x = torch.nn.Linear(4, 4), torch.randn(2, 4)
    with inference(CPU, torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
        with inference(CPU, torch.float32):
            assert layer(x).dtype == torch.float32
    with inference(CPU, torch.float32):
        assert not layer(x).requires_grad
