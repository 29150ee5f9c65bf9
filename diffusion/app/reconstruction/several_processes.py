"""One video by several processes, started by torchrun: all compute, the first one writes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from diffusion.pipelines.cascade import Cascade


@contextmanager
def sharing(pipeline: Cascade) -> Iterator[bool]:
    """Within the block, the pipeline shares its work with the others; whether this is the first."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield True
        return
    if pipeline.device.type == "cuda":
        # NCCL would guess the device from the rank otherwise
        dist.init_process_group("nccl", device_id=pipeline.device)
    else:
        dist.init_process_group("gloo")
    try:
        pipeline.spread()
        yield dist.get_rank() == 0
        dist.barrier()  # what the first one writes is there when the others end
    finally:
        dist.destroy_process_group()
