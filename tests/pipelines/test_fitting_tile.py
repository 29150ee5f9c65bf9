import pytest
import torch
from test_cascade import random_video, tiny_cascade

from diffusion.pipelines.activation_memory import PeakAllocation, activation_bytes, free_bytes
from diffusion.pipelines.fitting_tile import check_fits, largest_tile
from diffusion.utils.compute import Compute
from diffusion.utils.errors import UserError


def test_peak_allocation_counts_what_lives_at_a_time():
    with PeakAllocation() as measured:
        a = torch.zeros(1000)
        b = a + 1  # both
        del a
        c = b * 2  # b and c
        d = c.view(10, 100)[1:]  # no memory of its own
        del b, c, d
    assert measured.peak == 2 * 4000
    assert measured.now == 0


def test_activations_are_counted_without_computing():
    pipeline = tiny_cascade()

    def decode(side):
        return activation_bytes(lambda: pipeline.vae.decode(torch.empty(1, 4, 8, side, side)))

    small, large = decode(64), decode(128)
    assert large == pytest.approx(4 * small, rel=0.05)
    assert decode(4096) > 2**36  # that much is not here
    assert pipeline.vae.decode(torch.zeros(1, 4, 1, 4, 4)).isfinite().all()  # as it was before


def test_what_is_compiled_is_counted_as_it_is_written():
    """Compiling for tensors without values would take a minute, or fail."""
    plain, compiled = (tiny_cascade(compute=Compute(compile=on)) for on in (False, True))

    def predict(pipeline):
        x, condition = torch.empty(1, 4, 4, 16, 16), torch.empty(1, 20, 4, 16, 16)
        return activation_bytes(lambda: pipeline.refiner(x, torch.empty(1), condition))

    assert predict(compiled) == predict(plain) > 0


def test_free_memory_is_known():
    assert 2**26 < free_bytes(torch.device("cpu")) < 2**50


@pytest.mark.parametrize(
    ("budget", "wanted"), [(10**10, 100), (10_000, 100), (9999, 60), (400, 20)]
)
def test_the_largest_tile_that_fits(budget, wanted):
    """A network whose activations take one byte per position."""
    seen = []

    def run(rows, columns):
        seen.append((rows, columns))
        return torch.empty(rows * columns, dtype=torch.uint8)

    assert largest_tile("net", (100, 100), 8, 1, run, budget) == wanted
    assert budget < 10**10 or not seen  # much memory: no look at all


def test_what_cannot_fit_says_what_would():
    with pytest.raises(UserError, match="lower cascade"):
        largest_tile("net", (100, 100), 8, 1, lambda r, c: torch.empty(r * c), 100)
    with pytest.raises(UserError, match=r"frames of 8192x8192 pixels .* --size \d+ would fit"):
        tiny_cascade(memory_gb=1).check_size(8192, 8192, steps=8)
    check_fits(1024, 1024, 100.0, 2 * 10**8)
    with pytest.raises(UserError, match=r"frames of 2048x1024 pixels .* --size 960 would fit"):
        check_fits(1024, 2048, 100.0, 2 * 10**8 - 10**7)


def test_one_tile_over_the_frame_is_no_tiling():
    video = random_video(3, 64, 96)
    whole, tiled = tiny_cascade(), tiny_cascade(tile=12, vae_tile=12)
    assert torch.equal(tiled.reconstruct(video, steps=2), whole.reconstruct(video, steps=2))


def test_little_memory_makes_tiles_and_nearly_the_same_result():
    video = random_video(2, 256, 320)
    whole = tiny_cascade(memory_gb=100).reconstruct(video, steps=1)
    pipeline = tiny_cascade(memory_gb=0.006)
    sizes = {"vae": set(), "compressor": set(), "previewer": set()}
    for name in sizes:
        part = getattr(pipeline, name)
        for method in ("encode", "decode"):
            if hasattr(part, method):
                call = getattr(part, method)

                def recorded(x, call=call, name=name):
                    if type(x) is torch.Tensor:  # no counting
                        sizes[name].add(tuple(x.shape[-2:]))
                    return call(x)

                setattr(part, method, recorded)
    out = pipeline.reconstruct(video, steps=1)
    assert out.shape == whole.shape
    assert all(max(size) < 256 for size in sizes["vae"])
    assert len(sizes["vae"]) == 2  # of pixels, and of latents
    assert (out - whole).abs().mean() < 0.1 * whole.std()


def test_tiles_of_every_network_are_blended():
    """Networks that work on single positions must not notice their tiles."""
    pipeline = tiny_cascade(vae_tile=16)
    pool = torch.nn.AvgPool2d

    def shrink(factor, channels):
        def call(x):
            small = pool(factor)(x.flatten(0, 2)[:, None])[:, 0]
            return small.view(*x.shape[:3], *small.shape[-2:])[:, :1].repeat(1, channels, 1, 1, 1)

        return call

    def grow(factor):
        return lambda x: (
            x[:, :3].repeat_interleave(factor, -1).repeat_interleave(factor, -2).clamp(-1, 1)
        )

    video = random_video(2, 256, 384)
    pipeline.compressor.encode, pipeline.vae.encode = shrink(32, 16), shrink(8, 4)
    pipeline.previewer.decode, pipeline.vae.decode = grow(32), grow(8)
    latents = pipeline.encode(video)
    torch.testing.assert_close(latents, shrink(32, 16)(video))
    torch.testing.assert_close(pipeline.preview(latents), grow(32)(latents))
    vae_latents = pipeline.encode_vae(video)
    torch.testing.assert_close(vae_latents, shrink(8, 4)(video))
    torch.testing.assert_close(pipeline.decode_vae(vae_latents), grow(8)(vae_latents))
