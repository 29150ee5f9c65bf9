"""Which device, and which number format is fast on it."""

import os

import torch
from torch import Tensor

from diffusion.utils.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def choose_device(name: str = "auto") -> torch.device:
    """CUDA if there is one, else the CPU; or the one named, such as "cuda:1"."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name!r} is unknown; use auto, cpu, cuda or cuda:1")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {name}: no CUDA device was found; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {name}: there are only {torch.cuda.device_count()} CUDA devices, from cuda:0"
        )
    return device


def own_device(device: torch.device, number: int = 0) -> torch.device:
    """The device of this process, made current: calls that name none are meant for it.

    One of several processes on a machine takes the GPU with its number, unless `device` says which:
    torchrun tells it (LOCAL_RANK), otherwise it is `number`, and GPUs are shared if there are few.
    """
    if device.type != "cuda":
        return device
    if device.index is None:
        device = torch.device("cuda", _own_index(number))
    torch.cuda.set_device(device)
    return device


def _own_index(number: int) -> int:
    count = torch.cuda.device_count()
    if "LOCAL_RANK" not in os.environ:
        return number % count
    index = int(os.environ["LOCAL_RANK"])
    if index >= count:
        raise UserError(
            f"process {index + 1} of this machine has no GPU: there are {count}; start as many "
            "processes (--nproc-per-node)"
        )
    return index


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on `device`; from the CPU to a GPU without waiting until it is there.

    From memory that is not pinned, a copy to a GPU first waits for all the GPU has to do.
    """
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """bf16 where the device multiplies it fast; else fp16 on CUDA, fp32 on a CPU."""
    if name != "auto":
        if name not in DTYPES:
            raise UserError(f"--dtype {name!r} is unknown; use auto, {', '.join(DTYPES)}")
        return DTYPES[name]
    if device.type == "cuda":
        with torch.cuda.device(device):  # torch is asked about the current one
            has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bf16 else torch.float16
    return torch.bfloat16 if cpu_has_fast_bf16() else torch.float32


def cpu_has_fast_bf16() -> bool:
    """Whether the CPU has bf16 dot products or matrix units (AVX512-BF16, AMX)."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
