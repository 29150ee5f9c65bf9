"""A CUDA device that is not there: real values on the CPU under the label `cuda:0`.

    with pretend_cuda() as device:
        video = pipeline.encode(clip.to("cuda"))  # raises where a GPU would
        assert not device.stalls                  # what made the host wait, and the line that did

What it is: tensors whose device is cuda:0 in Python and in C++, so that mixing with CPU tensors
raises, and autocast casts, by torch's own rules for CUDA. Gradients are those of the CPU tensors
inside. What it is not: a GPU's rounding, memory or speed; attention is torch's plain form.
"""

import sys
import threading
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from pretend_cuda_api import Generator, pretended_api
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

from diffusion.config import ROOT

aten = torch.ops.aten
DEVICE = torch.device("cuda", 0)

COPIES = (aten.copy_.default, aten._to_copy.default)
SOFTMAX = (aten._softmax.default, aten._log_softmax.default)
INDEXING = (aten.index.Tensor, aten.index_put_.default, aten.index_put.default)
# What returns numbers or sizes that the host must know.
SYNCHRONISING = {
    *("_local_scalar_dense", "nonzero", "masked_select", "equal", "bincount", "is_nonzero"),
    *("_unique", "_unique2", "unique_dim", "unique_consecutive", "linalg_eigh", "_linalg_eigh"),
    *("_linalg_svd", "_linalg_det", "linalg_eig", "nonzero_numpy"),
}


@dataclass(frozen=True)
class Stall:
    """What made the host wait for the device, or the device for the host.

    kind: "to device", from pageable memory or waiting for the copy; "to host"; "synchronise".
    """

    kind: str
    what: str
    line: str  # of the project, that caused it

    def __str__(self) -> str:
        return f"{self.kind}: {self.what} at {self.line}"


@dataclass
class PretendCuda:
    """stalls: so far; `clear` them to count anew."""

    stalls: list[Stall] = field(default_factory=list)
    pinned: set[int] = field(default_factory=set)  # storages
    generator: torch.Generator = field(default_factory=torch.Generator)

    def count(self, kind: str, what: object) -> None:
        self.stalls.append(Stall(kind, str(what), project_line()))

    def by_line(self) -> Counter[str]:
        """How often each happened."""
        return Counter(map(str, self.stalls))

    def pin(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        key = storage._cdata
        self.pinned.add(key)
        weakref.finalize(storage, self.pinned.discard, key)
        return tensor

    def is_pinned(self, tensor: Tensor) -> bool:
        return not is_cuda(tensor) and tensor.untyped_storage()._cdata in self.pinned


def project_line() -> str:
    """The innermost line of the project that is running, tests only where there is no other."""
    frame, lines = sys._getframe(1), []
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(str(ROOT)) and "/.venv/" not in path and "/pretend_cuda" not in path:
            lines.append(f"{path[len(str(ROOT)) + 1 :]}:{frame.f_lineno}")
        frame = frame.f_back
    of_product = [line for line in lines if not line.startswith("tests/")]
    return (of_product or lines or ["?"])[0]


PRESENT: list[PretendCuda] = []
"""The device within pretend_cuda(): all threads have the same."""


class CudaTensor(Tensor):
    """Values on the CPU that say they are on cuda:0. `value` also holds the gradients' graph."""

    value: Tensor

    @staticmethod
    def __new__(cls, value: Tensor) -> "CudaTensor":
        made = Tensor._make_wrapper_subclass(
            cls,
            value.shape,
            strides=value.stride(),
            storage_offset=value.storage_offset(),
            dtype=value.dtype,
            device=DEVICE,
        )
        made.value = value
        return made

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        """What is asked of a tensor beside operations: its graph, its memory, copies of it."""
        kwargs = kwargs or {}
        if func in OF_THE_VALUE:
            return wrapped(func(*unwrapped(args), **unwrapped(kwargs)))
        if func in OF_THE_TENSOR:
            return OF_THE_TENSOR[func](*args, **kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if not PRESENT:
            raise RuntimeError(f"{func} outside of pretend_cuda(), on a tensor made inside it")
        with Pretending(PRESENT[-1]):  # in a thread that was there before
            return func(*args, **(kwargs or {}))


def is_cuda(x: object) -> bool:
    return isinstance(x, CudaTensor)


def unwrapped(tree: Any) -> Any:
    return tree_map(lambda x: value_of(x) if is_cuda(x) else x, tree)


def value_of(tensor: CudaTensor) -> Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        if (
            tensor.requires_grad and tensor.is_leaf
        ):  # as torch.zeros(..., requires_grad=True) says it, in C++
            tensor.requires_grad = False
            tensor.value.requires_grad_()
    return tensor.value


def wrapped(tree: Any) -> Any:
    return tree_map(lambda x: CudaTensor(x) if plain(x) else x, tree)


def plain(x: object) -> bool:
    return isinstance(x, Tensor) and not is_cuda(x)


def set_data(tensor: Tensor, new: Tensor) -> None:
    """`tensor.data = new`, which keeps the tensor's identity."""
    with torch._C.DisableTorchFunctionSubclass():
        Tensor.data.__set__(tensor, new)
    with torch.no_grad():
        tensor.value = new.value.detach().requires_grad_(tensor.value.requires_grad)


def require_grad(tensor: CudaTensor, required: bool = True) -> CudaTensor:
    tensor.value.requires_grad_(required)
    return tensor


def deep_copy(tensor: CudaTensor, memo: dict) -> CudaTensor:
    if id(tensor) not in memo:
        copied = CudaTensor(tensor.value.detach().clone().requires_grad_(tensor.requires_grad))
        copied.__dict__ |= {k: v for k, v in tensor.__dict__.items() if k != "value"}
        memo[id(tensor)] = copied
    return memo[id(tensor)]


def show(tensor: CudaTensor, **_: Any) -> str:
    with suppress(RuntimeError):  # pytest shows tensors when the device has gone
        tensor.cpu()
    return f"{tensor.value.detach()!r} on cuda:0"


OF_THE_VALUE = {
    *(Tensor.grad.__get__, Tensor.grad.__set__, Tensor.grad.__delete__, Tensor.backward),
    *(Tensor.requires_grad.__get__, Tensor.is_leaf.__get__, Tensor.grad_fn.__get__),
    *(Tensor.retain_grad, Tensor._version.__get__, Tensor.data_ptr, Tensor.untyped_storage),
    *(torch.autograd.grad, torch.autograd.backward),
}
OF_THE_TENSOR = {
    Tensor.data.__set__: set_data,
    Tensor.requires_grad.__set__: require_grad,
    Tensor.requires_grad_: require_grad,
    Tensor.__deepcopy__: deep_copy,
    Tensor.tolist: lambda tensor: tensor.cpu().tolist(),
    Tensor.__repr__: show,
}


class Pretending(TorchDispatchMode):
    """Runs what concerns cuda:0 on the values inside, by the rules of a GPU."""

    def __init__(self, device: PretendCuda):
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if kwargs.pop("pin_memory", None):
            return self.device.pin(func(*args, **kwargs))
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        asked = kwargs.get("device")
        if not any(map(is_cuda, tensors)) and (asked is None or torch.device(asked).type != "cuda"):
            return func(*args, **kwargs)
        if func in COPIES:
            return self._copy(func, *args, **kwargs)
        self._check(func, args, kwargs, tensors)
        goes_to_host = asked is not None and torch.device(asked).type == "cpu"
        if asked is not None:
            kwargs["device"] = torch.device("cpu")
        result = self._compute(func, args, kwargs)
        if goes_to_host:
            return result
        return return_and_correct_aliasing(func, args, kwargs, wrapped(result))

    def _compute(self, func, args, kwargs):
        """On the values, with gradients where they are wanted, and the device's random numbers."""
        args, kwargs = unwrapped(args), unwrapped(kwargs)
        draws = torch.Tag.nondeterministic_seeded in func.tags and kwargs.get("generator") is None
        with ExitStack() as stack:
            if torch.is_autocast_enabled("cpu"):  # is not about this device
                stack.enter_context(torch.autocast("cpu", enabled=False))
            if draws:
                stack.enter_context(drawing_from(self.device.generator))
            stack.enter_context(recording_gradients())
            if func in SOFTMAX and args[2]:  # from half to float at once, which CPUs do not have
                args = args[0].float(), args[1], False
            return func(*args, **kwargs)

    def _copy(self, func, *args, **kwargs):
        """To, from and on the device; `copy_(destination, source)` or `_to_copy(source)`."""
        source = args[-1] if func is aten._to_copy.default else args[1]
        asynchronous = kwargs.get("non_blocking", False) or (len(args) > 2 and args[2])
        if func is aten.copy_.default:
            to_cuda = is_cuda(args[0])
        else:
            device = kwargs.pop("device", None)
            to_cuda = is_cuda(source) if device is None else torch.device(device).type == "cuda"
            to_meta = device is not None and torch.device(device).type == "meta"
            kwargs["device"] = torch.device("meta" if to_meta else "cpu")
            if to_meta:
                return func(*unwrapped(args), **kwargs)
        if to_cuda and not is_cuda(source) and not (asynchronous and self.device.is_pinned(source)):
            how = "a copy of" if self.device.is_pinned(source) else "pageable"
            self.device.count("to device", f"{how} {describe(source)}")
        result = self._compute(func, args, kwargs)
        if not to_cuda and is_cuda(source):
            into_pinned = func is aten._to_copy.default or self.device.is_pinned(args[0])
            if not (asynchronous and into_pinned):
                self.device.count("to host", describe(source))
            elif func is aten._to_copy.default:
                self.device.pin(result)
        if func is aten.copy_.default:
            return args[0]
        return CudaTensor(result) if to_cuda else result

    def _check(self, func, args, kwargs, tensors: list[Tensor]) -> None:
        """Refuse what a GPU refuses, count what makes it wait."""
        name, generator = func.overloadpacket.__name__, kwargs.get("generator")
        if generator is not None and generator._cdata not in Generator.on_cuda:
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        others = [x for x in tensors if plain(x)]
        if func in INDEXING and is_cuda(args[0]):
            indices = [x for x in args[1] if x is not None]
            for index in filter(plain, indices):
                self.device.count("to device", f"an index, {describe(index)}")
            if any(x.dtype in (torch.bool, torch.uint8) for x in indices):
                self.device.count("synchronise", f"{name} of a mask")
            others = [x for x in others if all(x is not index for index in indices)]
        takes_numbers = torch.Tag.pointwise in func.tags or name in TAKE_NUMBERS or func in INDEXING
        if others and not (takes_numbers and all(x.ndim == 0 for x in others)):
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"cuda:0 and cpu! ({name}: {', '.join(map(describe, tensors))})"
            )
        if plain(args[0] if args else None) and func._schema.is_mutable and name.endswith("_"):
            raise RuntimeError(f"{name}: a result on cuda:0 does not fit into a tensor on the CPU")
        if name in SYNCHRONISING or (name == "repeat_interleave" and not kwargs.get("output_size")):
            self.device.count("synchronise", SAID_AS.get(name, name))


AUTOGRAD = (torch._C.DispatchKey.AutogradFunctionality, torch._C.DispatchKey.ADInplaceOrView)
TAKE_NUMBERS = {"masked_fill", "masked_fill_", "fill_", "where", "index_fill_", "index_fill"}
SAID_AS = {"_local_scalar_dense": "item, bool or float"}


def describe(tensor: Tensor) -> str:
    place = "cuda:0" if is_cuda(tensor) else "cpu"
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)} on {place}"


def recording_gradients() -> torch._C._ForceDispatchKeyGuard:
    """Autograd is done with an operation when a mode gets it; here it is about to begin."""
    left_out = torch._C._dispatch_tls_local_exclude_set()
    for key in AUTOGRAD:
        left_out = left_out.remove(key)
    return torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), left_out)


@contextmanager
def drawing_from(generator: torch.Generator) -> Iterator[None]:
    """Within the block the CPU's default generator goes on where `generator` was."""
    held = torch.get_rng_state()
    torch.set_rng_state(generator.get_state())
    try:
        yield
    finally:
        generator.set_state(torch.get_rng_state())
        torch.set_rng_state(held)


@contextmanager
def pretend_cuda() -> Iterator[PretendCuda]:
    """Within the block there is a CUDA device. Tensors on it are of no use outside."""
    device = PretendCuda()
    device.generator.manual_seed(0)
    run = threading.Thread.run

    def run_pretending(thread: threading.Thread) -> None:
        with Pretending(device):
            run(thread)

    PRESENT.append(device)
    try:
        with (
            pretended_api(device),
            patch.object(threading.Thread, "run", run_pretending),
            Pretending(device),
        ):
            yield device
    finally:
        PRESENT.pop()
