"""One training on one or several processes: what they share, and what each holds of it."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor

from diffusion.data.training.batch import Batch, LatentBatch
from diffusion.registry import nearest
from diffusion.training.optimizers import NEED_WHOLE_WEIGHTS
from diffusion.utils.devices import own_device
from diffusion.utils.errors import ConfigError, UserError

PRECISIONS = {torch.float32: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}


def join_processes(device: torch.device) -> PartialState:
    """Meet the other processes that torchrun started, if it did; tells rank and device of this one.

    Of several GPUs this process uses its own from here on, and no memory on another.
    """
    if PartialState._shared_state and not PartialState().use_distributed:
        AcceleratorState._reset_state(reset_partial_state=True)  # of an earlier training
    if device.type == "cpu":
        return PartialState(cpu=True)
    device, started = own_device(device), "LOCAL_RANK" in os.environ
    if started and device.index != int(os.environ["LOCAL_RANK"]):
        raise UserError(
            f"--device {device}: several processes take the GPUs of their numbers; use --device "
            "cuda, and CUDA_VISIBLE_DEVICES to choose among GPUs"
        )
    # NCCL need not guess the GPU of a process
    state = PartialState(device_id=device) if started else PartialState()
    state.device = device
    return state


def host_group(state: PartialState) -> dist.ProcessGroup | None:
    """For what processes tell one another without their devices; None for a single process."""
    if not state.use_distributed:
        return None
    return dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")


def in_any_process(happened: bool, group: dist.ProcessGroup | None) -> bool:
    """Whether it happened in one of the group's processes, which must all ask."""
    if group is None:
        return happened
    told = torch.tensor(int(happened))
    dist.all_reduce(told, dist.ReduceOp.MAX, group=group)
    return bool(told)


@dataclass(frozen=True)
class Sharding:
    """FSDP2: every process holds a part of each weight, of its average and optimizer state.

    wrap: class names of the blocks that are gathered one at a time; () gathers all at once.
    reshard_after_forward: gather them again for the backward pass, which takes less memory.
    cpu_offload: keep what this process holds in the CPU's memory.
    """

    wrap: Sequence[str] = ()
    reshard_after_forward: bool = True
    cpu_offload: bool = False

    def check(self, parts: nn.Module, optimizer: str) -> None:
        if optimizer in NEED_WHOLE_WEIGHTS:
            raise ConfigError(
                f"train.optimizer {optimizer!r} needs whole weights; with train.fsdp use AdamW"
            )
        present = {type(module).__name__ for module in parts.modules()}
        for name in self.wrap:
            if name not in present:
                raise ConfigError(
                    f"train.fsdp.wrap: no network has a {name!r}; {nearest(name, present)}"
                )

    def plugin(
        self, dtype: torch.dtype, frozen: Iterable[nn.Module]
    ) -> FullyShardedDataParallelPlugin:
        """frozen: networks that are not trained; every process holds them whole.

        Weights are gathered in `dtype`, as autocast would round them. What a network is given, what
        it returns and the sums of gradients stay in float32.
        """
        return FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap" if self.wrap else "no_wrap",
            transformer_cls_names_to_wrap=list(self.wrap) or None,
            reshard_after_forward=self.reshard_after_forward,
            cpu_offload=self.cpu_offload,
            cpu_ram_efficient_loading=False,
            ignored_modules=list(frozen) or None,
            mixed_precision_policy=MixedPrecisionPolicy(
                param_dtype=None if dtype == torch.float32 else dtype,
                reduce_dtype=torch.float32,
                cast_forward_inputs=False,
            ),
        )


def build_accelerator(
    device: torch.device,
    dtype: torch.dtype,
    gradient_accumulation: int,
    sharding: Sharding | None,
    frozen: Iterable[nn.Module],
) -> Accelerator:
    """sharding: None for whole networks in every process (DDP). frozen: see Sharding."""
    if dtype == torch.float16 and device.type == "cpu":
        raise UserError("--dtype fp16: training in it needs a GPU; use bf16 or fp32")
    join_processes(device)
    AcceleratorState._reset_state()  # an earlier training in this process may have had another
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=PRECISIONS[dtype],
        gradient_accumulation_steps=gradient_accumulation,
        fsdp_plugin=sharding and sharding.plugin(dtype, frozen),
    )
    if sharding is not None and not accelerator.is_fsdp2:
        raise ConfigError("train.fsdp shards over GPUs: start it with scripts/train_distributed.sh")
    return accelerator


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
