"""One video by several processes, started by torchrun: all compute, the first one writes."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist

from diffusion.pipelines.cascade import CascadePipeline


@contextmanager
def sharing(pipeline: CascadePipeline) -> Iterator[bool]:
    """Within the block, the pipeline shares its work with the others; whether this is the first."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield True
        return
    dist.init_process_group("nccl" if pipeline.device.type == "cuda" else "gloo")
    try:
        pipeline.spread()
        yield dist.get_rank() == 0
        dist.barrier()  # what the first one writes is there when the others end
    finally:
        dist.destroy_process_group()


@contextmanager
def output_folder(folder: Path, is_first: bool) -> Iterator[Path]:
    """The folder; for other processes than the first one a folder that goes at the end."""
    if is_first:
        yield folder
        return
    own = Path(tempfile.mkdtemp())
    try:
        yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)
