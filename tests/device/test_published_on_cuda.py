"""The published configuration, narrow, on a CUDA device that is not there: its own networks."""

from collections.abc import Callable, Iterator

import pytest
import torch
from pretend_cuda import PretendCuda, pretend_cuda
from torch import Tensor, nn

from diffusion.app.gpu_check.published_checks import CONFIG, NO_WEIGHTS, SMALL
from diffusion.app.training.dry_run import build_stage
from diffusion.config import load_config
from diffusion.data.training.batch import Batch
from diffusion.pipelines.cascade import Cascade
from diffusion.pipelines.cascade_builder import PARTS, assemble, build_part
from diffusion.training.draws import Draws

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture
def device() -> Iterator[PretendCuda]:
    with pretend_cuda() as device:
        yield device


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {name: build_part(load_config(CONFIG, SMALL), name) for name in PARTS}


@pytest.fixture
def cascade(networks) -> Callable[..., Cascade]:
    def build(place: str, dtype: torch.dtype = torch.float32) -> Cascade:
        return assemble(load_config(CONFIG, SMALL), networks, device=place, dtype=dtype)

    return build


def video(frames: int = 3, side: int = 64) -> Tensor:
    return torch.rand(1, 3, frames, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_stage(device, cascade, dtype):
    here, there = cascade("cpu"), cascade("cuda", dtype)
    stages = {
        "encode": lambda p: p.encode(video()),
        "preview": lambda p: p.preview(torch.ones(1, 16, 3, 2, 2)),
        "encode_vae": lambda p: p.encode_vae(video()),
        "restore": lambda p: p.restore(torch.ones(1, 16, 3, 2, 2), steps=1, sampler="ddim"),
        "decode_vae": lambda p: p.decode_vae(torch.ones(1, 4, 3, 8, 8)),
    }
    for name, stage in stages.items():
        got, wanted = stage(there), stage(here)
        assert got.device.type == "cuda", name
        assert got.dtype == torch.float32, name
        error = (got.cpu() - wanted).square().mean().sqrt() / wanted.square().mean().sqrt()
        assert error < (1e-5 if dtype == torch.float32 else 0.05), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_training_step(device, dtype):
    """Targets of the SVD VAE's posterior, a learned variance, checkpoints in every block."""
    stage = build_stage(load_config(CONFIG, (*SMALL, NO_WEIGHTS))).to("cuda")
    for number in range(3):
        device.stalls.clear()
        batch = Batch(video(8), ["a.mp4"]).pin_memory().to("cuda")
        draws = Draws(seed=0, step=number, first=0, count=1, device=torch.device("cuda"))
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            loss = torch.stack(list(stage.loss(batch, draws).values())).sum()
        loss.backward()
    assert not device.by_line()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in stage.parts.parameters())
