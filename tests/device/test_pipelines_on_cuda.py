"""The cascade on a CUDA device that is not there: what the CPU computes, without waiting."""

from collections.abc import Callable, Iterator

import pytest
import tiny
import torch
from pretend_cuda import PretendCuda, pretend_cuda
from torch import Tensor

from diffusion.config import load_config
from diffusion.pipelines.cascade import Cascade
from diffusion.pipelines.interpolation import stretched_length, stretched_pieces
from diffusion.pipelines.upscaling import Upscaler

SAMPLERS = ("euler_a", "ddim", "dpmpp", "euler")
FLOW = ("noise.prediction_type=flow_prediction",)
PUBLISHED = (
    "cascade.published=True",
    "conditioning.residual_std=None",
    "refiner.condition_channels=16",
    "refiner.learned_variance=True",
    "noise.learned_variance=True",
    "noise.prediction_type=epsilon",
)
SMALL_TILES = ("cascade.tile=8", "cascade.vae_tile=8")


@pytest.fixture
def device() -> Iterator[PretendCuda]:
    with pretend_cuda() as device:
        yield device


@pytest.fixture
def cascade(tiny_config) -> Callable[..., Cascade]:
    """(place, *overrides of the config) -> the same cascade there."""

    def build(place: str, *overrides: str, dtype: torch.dtype = torch.float32) -> Cascade:
        config = load_config(tiny_config, overrides)
        return tiny.assemble(config, tiny.random_parts(config), device=place, dtype=dtype)

    return build


def video(frames: int = 5, height: int = 60, width: int = 90) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(1, 3, frames, height, width, generator=generator) * 2 - 1


def latents(frames: int = 5) -> Tensor:
    return torch.randn(1, 16, frames, 2, 3, generator=torch.Generator().manual_seed(1))


def same(on_device: Tensor, on_cpu: Tensor) -> bool:
    assert on_device.device.type == "cuda"
    assert on_device.dtype == on_cpu.dtype
    return torch.equal(on_device.cpu(), on_cpu)


@pytest.mark.parametrize("overrides", [(), SMALL_TILES, PUBLISHED], ids=["", "tiles", "published"])
def test_every_stage_gives_what_the_cpu_gives(device, cascade, overrides):
    here, there = (cascade(place, *overrides) for place in ("cpu", "cuda"))
    assert same(there.encode(video()), here.encode(video()))
    assert same(there.preview(latents()), here.preview(latents()))
    whole = video(height=64, width=96)
    assert same(there.encode_vae(whole), here.encode_vae(whole))
    restored = here.restore(latents(), steps=2)
    assert same(there.restore(latents(), steps=2), restored)
    assert same(there.decode_vae(restored.cuda()), here.decode_vae(restored))
    assert same(there.reconstruct(video(), steps=2), here.reconstruct(video(), steps=2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_near_the_cpus_float32(device, cascade, dtype):
    here, there = cascade("cpu"), cascade("cuda", dtype=dtype)
    encoded = there.encode(video())
    assert encoded.dtype == torch.float32
    torch.testing.assert_close(encoded.cpu(), here.encode(video()), rtol=0.05, atol=0.05)
    decoded, wanted = (pipeline.decode(latents(), steps=2) for pipeline in (there, here))
    assert decoded.dtype == torch.float32
    assert (decoded.cpu() - wanted).square().mean().sqrt() < 0.05


@pytest.mark.parametrize(
    ("sampler", "overrides"),
    [*((name, ()) for name in SAMPLERS), ("euler", FLOW), ("dpmpp", FLOW)],
    ids=[*SAMPLERS, "flow euler", "flow dpmpp"],
)
def test_every_sampler_runs_and_no_step_waits(device, cascade, sampler, overrides):
    here, there = (cascade(place, *overrides) for place in ("cpu", "cuda"))
    options = {"steps": 3, "sampler": sampler}
    assert same(there.restore(latents(), **options), here.restore(latents(), **options))
    there.restore(latents(), **options)  # what is made once is there
    counts = []
    for steps in (3, 4, 7):
        device.stalls.clear()
        there.restore(latents(), steps=steps, sampler=sampler)
        counts.append(device.by_line())
    assert counts[0] == counts[1] == counts[2]


@pytest.mark.parametrize("overrides", [(), SMALL_TILES, PUBLISHED], ids=["", "tiles", "published"])
def test_no_window_and_no_tile_waits(device, cascade, overrides):
    """Beside what is given from the CPU: that is sent once."""
    there = cascade("cuda", *overrides)
    counts = []
    for frames in (16, 24):
        given = latents(frames).cuda()
        there.decode(given, steps=2)
        device.stalls.clear()
        there.decode(given, steps=2)
        counts.append(device.by_line())
    assert counts[0] == counts[1]
    assert not counts[0]


def test_a_stream_that_was_broken_off_goes_on(device, cascade):
    """What was finished comes from a disk, and lies on the CPU."""
    here, there = (cascade(place) for place in ("cpu", "cuda"))
    frames, options = 24, {"steps": 2}
    pieces = [(part, None) for part in latents(frames).split(5, dim=2)]
    whole = list(here.restore_stream(pieces, frames, **options))
    for count in (1, 3, len(whole)):
        restored = there.restore_stream(pieces, frames, finished=whole[:count], **options)
        decoded = torch.cat(list(there.decode_vae_stream(restored, frames)), dim=2)
        assert same(decoded, here.decode_vae(torch.cat(whole, dim=2)))


def test_inputs_may_come_from_any_device(device, cascade):
    here, there = (cascade(place) for place in ("cpu", "cuda"))
    noise, preview = torch.randn(1, 4, 5, 8, 12), here.preview(latents())
    wanted = here.restore(latents(), steps=1, preview=preview, noise=noise)
    for from_host in ("latents", "preview", "noise"):
        given = {"latents": latents(), "preview": preview, "noise": noise}
        given = {name: x if name == from_host else x.cuda() for name, x in given.items()}
        assert same(there.restore(given.pop("latents"), steps=1, **given), wanted)
    base = here.base(latents(), preview)
    assert same(there.base(latents().cuda(), preview), base)
    assert same(there.base(latents()), base)
    mixed = [(latents()[:, :, :2], None), (latents()[:, :, 2:].cuda(), preview[:, :, 2:])]
    assert torch.cat(list(there.restore_stream(mixed, 5, steps=1)), dim=2).device.type == "cuda"


@pytest.mark.parametrize("condition", ["enlarged", "compressor"])
def test_upscaling(device, cascade, condition):
    def upscaled(place: str) -> Tensor:
        upscaler = Upscaler(cascade(place), 4, condition)
        pipeline, pieces = upscaler.pipeline, upscaler.pieces([video(height=32, width=24)])
        restored = pipeline.restore_stream(pieces, 5, steps=2)
        return torch.cat(list(pipeline.decode_vae_stream(restored, 5)), dim=2)

    assert same(upscaled("cuda"), upscaled("cpu"))


def test_interpolation(device, cascade):
    def interpolated(place: str) -> Tensor:
        pipeline, length = cascade(place), stretched_length(5, 2)
        pieces = stretched_pieces(pipeline, video().split(2, dim=2), 2)
        restored = pipeline.restore_stream(pieces, length, steps=2)
        return torch.cat(list(pipeline.decode_vae_stream(restored, length)), dim=2)

    assert same(interpolated("cuda"), interpolated("cpu"))
