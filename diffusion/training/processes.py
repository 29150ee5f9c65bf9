"""One training on one or several processes: what they share, and what each holds of it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from diffusion.data.training.batch import Batch, LatentBatch
from diffusion.registry import call_with, nearest
from diffusion.training.optimizers import NEED_WHOLE_WEIGHTS
from diffusion.utils.errors import ConfigError, UserError

PRECISIONS = {torch.float32: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}


def join_processes(device: torch.device) -> PartialState:
    """Meet the other processes that torchrun started, if it did; tells the rank of this one."""
    if PartialState._shared_state and not PartialState().use_distributed:
        AcceleratorState._reset_state(reset_partial_state=True)  # of an earlier training
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return PartialState(cpu=device.type == "cpu")


def build_accelerator(
    device: torch.device,
    dtype: torch.dtype,
    gradient_accumulation: int,
    fsdp: Mapping[str, Any] | None,
    frozen: Iterable[nn.Module],
) -> Accelerator:
    """fsdp: options of `sharding`, or None for whole networks in every process (DDP)."""
    if dtype == torch.float16 and device.type == "cpu":
        raise UserError("--dtype fp16: training in it needs a GPU; use bf16 or fp32")
    join_processes(device)
    AcceleratorState._reset_state()  # an earlier training in this process may have had another
    plugin = None
    if fsdp is not None:
        plugin = call_with(sharding, fsdp, "train.fsdp", frozen=list(frozen))
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=PRECISIONS[dtype],
        gradient_accumulation_steps=gradient_accumulation,
        fsdp_plugin=plugin,
    )
    if fsdp is not None and not accelerator.is_fsdp2:
        raise ConfigError("train.fsdp shards over GPUs: start it with scripts/train_distributed.sh")
    return accelerator


def sharding(
    *,
    frozen: list[nn.Module],
    wrap: Iterable[str] = (),
    reshard_after_forward: bool = True,
    cpu_offload: bool = False,
) -> FullyShardedDataParallelPlugin:
    """FSDP2: every process holds a part of each weight, of its average and optimizer state.

    frozen: networks that are not trained; every process holds them whole.
    wrap: class names of the blocks that are gathered one at a time; () gathers all at once.
    """
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap" if wrap else "no_wrap",
        transformer_cls_names_to_wrap=list(wrap) or None,
        reshard_after_forward=reshard_after_forward,
        cpu_offload=cpu_offload,
        cpu_ram_efficient_loading=False,
        ignored_modules=frozen or None,
    )


def check_sharding(fsdp: Mapping[str, Any], parts: nn.Module, optimizer: str) -> None:
    if optimizer in NEED_WHOLE_WEIGHTS:
        raise ConfigError(
            f"train.optimizer {optimizer!r} needs whole weights; with train.fsdp use AdamW"
        )
    present = {type(module).__name__ for module in parts.modules()}
    for name in fsdp.get("wrap", ()):
        if name not in present:
            raise ConfigError(
                f"train.fsdp.wrap: no network has a {name!r}; {nearest(name, present)}"
            )


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor, gathered from all processes, which must all call this; others as is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_like(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, if `like` is sharded and of the same shape."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    tensor = tensor.to(like.device)
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def map_tensors(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """The same dicts, lists and tuples, with `function` applied to the tensors in them."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, Mapping):
        return {key: map_tensors(function, value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(map_tensors(function, value) for value in tree)
    return tree


def gather_batch(accelerator: Accelerator, batch: Batch | LatentBatch) -> Batch | LatentBatch:
    """The batches of all processes as one, the same in each, on its device as stages get them."""
    batch = batch.to(accelerator.device)
    if not accelerator.use_distributed:
        return batch
    return replace(batch.map(accelerator.gather), sources=gather_object(batch.sources))
