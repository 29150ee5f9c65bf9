"""How much memory a network's activations take, and how much there is."""

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CGROUP = Path("/sys/fs/cgroup")


class PeakAllocation(TorchDispatchMode):
    """Most bytes in use at a time by tensors made within the block, as eager mode frees them."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._seen:
            return
        self._seen.add(storage._cdata)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def activation_bytes(run: Callable[[], object]) -> int:
    """Of `run()`, which makes its own inputs on the CPU and calls networks; nothing is computed."""
    with (
        torch.compiler.set_stance("force_eager"),  # as what is compiled needs no more
        FakeTensorMode(allow_non_fake_inputs=True),
        torch.no_grad(),
        PeakAllocation() as measured,
    ):
        run()
    return measured.peak


def free_bytes(device: torch.device) -> int:
    """What can be allocated on the device: on a CPU also within the container's limit."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return min(psutil.virtual_memory().available, _container_bytes())


def _container_bytes() -> int:
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
        cached = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        return 2**63 if limit == "max" else int(limit) - used + int(cached["inactive_file"])
    except (OSError, ValueError, KeyError):
        return 2**63
