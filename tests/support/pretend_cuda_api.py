"""What torch says about the device of `pretend_cuda`: torch.cuda's functions, and flags."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest.mock import patch

import psutil
import torch
from torch import Tensor

NAME = "pretend CUDA"


class Generator(torch.Generator):
    """Remembers the device that it was asked for; draws on the CPU."""

    on_cuda: ClassVar[set[int]] = set()  # operations get another object, of the same address

    def __new__(cls, device: Any = "cpu"):
        made = super().__new__(cls, "cpu")
        made.label = torch.device(device)
        if made.label.type == "cuda":
            cls.on_cuda.add(made._cdata)
            weakref.finalize(made, cls.on_cuda.discard, made._cdata)
        return made

    @property
    def device(self) -> torch.device:
        return self.label


class Stream:
    """All work of the device is done when it is given."""

    def __init__(self, device: Any = None, priority: int = 0):
        pass

    def wait_stream(self, stream: "Stream") -> None:
        pass

    def wait_event(self, event: "Event") -> None:
        pass

    def record_event(self, event: "Event | None" = None) -> "Event":
        return event or Event()

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        torch.cuda.synchronize()


class Event:
    def __init__(self, enable_timing: bool = False, blocking: bool = False, **_: Any):
        pass

    def record(self, stream: Stream | None = None) -> None:
        pass

    def wait(self, stream: Stream | None = None) -> None:
        pass

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        torch.cuda.synchronize()


def functions(device: Any) -> dict[str, Callable]:
    """Of torch.cuda, with the meaning that they have on a CPU."""
    memory = psutil.virtual_memory()
    process, here = psutil.Process(), torch.device("cuda", 0)

    def seed(value: int) -> None:
        device.generator.manual_seed(value)

    def set_device(index: Any) -> None:
        index = torch.device(index).index if not isinstance(index, int) else index
        if index not in (None, 0):
            raise RuntimeError(f"CUDA error: invalid device ordinal {index}")

    return {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_lazy_init": lambda: None,
        "init": lambda: None,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": set_device,
        "get_device_name": lambda device=None: NAME,
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_properties": lambda device=None: SimpleNamespace(
            name=NAME, total_memory=memory.total, major=9, minor=0, multi_processor_count=1
        ),
        "is_bf16_supported": lambda including_emulation=True: True,
        "mem_get_info": lambda device=None: (psutil.virtual_memory().available, memory.total),
        "memory_allocated": lambda device=None: 0,
        "memory_reserved": lambda device=None: 0,
        "max_memory_allocated": lambda device=None: process.memory_info().rss,
        "reset_peak_memory_stats": lambda device=None: None,
        "empty_cache": lambda: None,
        "synchronize": lambda device_=None: device.count("synchronise", "torch.cuda.synchronize"),
        "manual_seed": seed,
        "manual_seed_all": seed,
        "get_rng_state": lambda device_=here: device.generator.get_state(),
        "set_rng_state": lambda state, device_=here: device.generator.set_state(state),
        "get_rng_state_all": lambda: [device.generator.get_state()],
        "set_rng_state_all": lambda states: device.generator.set_state(states[0]),
        "Stream": Stream,
        "Event": Event,
        "current_stream": lambda device=None: Stream(),
        "default_stream": lambda device=None: Stream(),
        "stream": lambda stream: nullcontext(),
        "device": lambda device: nullcontext(),
    }


@contextmanager
def flags() -> Iterator[None]:
    """The forms of layers that a CPU can compute; conversions of modules keep their parameters."""
    sdpa = ("flash", "mem_efficient", "cudnn")
    switches = torch.backends.cuda
    before = {name: getattr(switches, f"{name}_sdp_enabled")() for name in sdpa}
    swap = torch.__future__.get_swap_module_params_on_conversion()
    chosen = (torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32)
    matmul = torch.get_float32_matmul_precision()
    try:
        for name in sdpa:
            getattr(switches, f"enable_{name}_sdp")(False)
        torch.__future__.set_swap_module_params_on_conversion(True)
        with torch.backends.cudnn.flags(enabled=False):
            yield
    finally:
        for name, enabled in before.items():
            getattr(switches, f"enable_{name}_sdp")(enabled)
        torch.__future__.set_swap_module_params_on_conversion(swap)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = chosen
        torch.set_float32_matmul_precision(matmul)


@contextmanager
def pretended_api(device: Any) -> Iterator[None]:
    """Within the block torch knows `device`, a PretendCuda."""
    torch._C._ensureCUDADeviceGuardSet()  # one that does nothing, where there is no driver
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device="cuda") is a copy
    moved = {"pin_memory": lambda self, device_=None: device.pin(self.clone())}
    moved["is_pinned"] = lambda self, device_=None: device.is_pinned(self)
    on_accelerator = {"is_available": lambda: True, "set_device_index": lambda index: None}
    with ExitStack() as stack:
        stack.enter_context(patch.multiple(torch.accelerator, **on_accelerator))
        stack.callback(torch._C._set_only_lift_cpu_tensors, False)
        stack.enter_context(patch.multiple(torch.cuda, **functions(device)))
        stack.enter_context(patch.multiple(Tensor, **moved))
        stack.enter_context(patch.object(torch, "Generator", Generator))
        stack.enter_context(flags())
        yield
