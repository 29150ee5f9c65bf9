import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from diffusion.utils.constants import constant


@constant(maxsize=2)
def ones(count: int) -> torch.Tensor:
    return torch.ones(count)


def test_a_constant_is_made_once():
    assert ones(3) is ones(3)
    assert ones(4) is not ones(3)


def test_tensors_without_values_are_not_kept_for_those_with():
    with FakeTensorMode():
        assert isinstance(ones(5), FakeTensor)
    assert torch.equal(ones(5), torch.ones(5))
    with FakeTensorMode():
        assert isinstance(ones(5), FakeTensor)
