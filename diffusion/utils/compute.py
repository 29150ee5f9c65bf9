"""How a device computes what it could compute in several ways."""

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Compute:
    """Options of speed, on or off; None is on where that gains.

    tf32: float32 products of a GPU with a mantissa of 10 bits. None: beside computing in a lower
        precision, since who asks for float32 wants its digits.
    cudnn_benchmark: cuDNN tries its ways to convolve at every new size. None: on a GPU.
    compile: the blocks of the transformer by torch.compile. None: off; the first call takes a
        minute, which a long run wins back.
    channels_last: kernels of convolutions as tensor cores read them. None: on a GPU, in a lower
        precision.
    """

    tf32: bool | None = None
    cudnn_benchmark: bool | None = None
    compile: bool | None = None
    channels_last: bool | None = None

    def on(self, device: torch.device, dtype: torch.dtype) -> "Compute":
        """Without None: what these options are for a run on `device` that computes in `dtype`."""
        is_gpu = device.type == "cuda"
        is_low = is_gpu and dtype != torch.float32

        def chosen(option: bool | None, gains: bool) -> bool:
            return gains if option is None else option

        return Compute(
            tf32=chosen(self.tf32, is_low),
            cudnn_benchmark=chosen(self.cudnn_benchmark, is_gpu),
            compile=chosen(self.compile, False),
            channels_last=chosen(self.channels_last, is_low),
        )

    def prepare(self, network: nn.Module, blocks: Iterable[nn.Module] = ()) -> None:
        """Lay the network's weights out, and compile its `blocks`, in place."""
        if self.channels_last:
            for module in network.modules():
                if isinstance(module, nn.Conv2d):
                    module.to(memory_format=torch.channels_last)
        if self.compile:
            for block in blocks:
                block.compile()

    @contextmanager
    def applied(self) -> Generator[None]:
        """Within the block, the process multiplies and convolves in this way."""
        # accelerate and torch's compiler use these switches too, which must not be mixed with the
        # newer `fp32_precision`
        matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        before = (matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark)
        matmul.allow_tf32 = cudnn.allow_tf32 = bool(self.tf32)
        cudnn.benchmark = bool(self.cudnn_benchmark)
        try:
            yield
        finally:
            matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before


@contextmanager
def inference(
    device: torch.device,
    dtype: torch.dtype,
    compute: Compute = Compute(),
    *,
    gradients: bool = False,
) -> Generator[None]:
    """No gradients, autocast to `dtype` unless that is float32, and the device's options.

    gradients: as they are outside.
    """
    recorded = gradients and torch.is_grad_enabled()
    autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
    with torch.set_grad_enabled(recorded), autocast, compute.on(device, dtype).applied():
        yield
