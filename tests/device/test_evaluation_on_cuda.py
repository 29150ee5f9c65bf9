"""Codecs and metrics on a CUDA device that is not there: what they give on the CPU."""

from collections.abc import Iterator
from pathlib import Path

import autoencoders
import pytest
import torch
from pretend_cuda import PretendCuda, pretend_cuda
from torch import Tensor
from video_files import moving_frames

from diffusion.data.transforms import to_float
from diffusion.evaluation.codecs.codecs_by_name import CodecOptions, build_codec
from diffusion.evaluation.metrics.all_metrics import METRICS

OF_THE_CASCADE = ("", "previewer:", "vae:", "linear:", "upscale:", "upscale_compressor:")
PLAIN = ("frames:blended", "frames:repeated", "bicubic:16/64")
SLOW = ("AutoencoderKLCogVideoX", "AutoencoderKLLTXVideo", "AutoencoderKLMagvit")


@pytest.fixture
def device() -> Iterator[PretendCuda]:
    with pretend_cuda() as device:
        yield device


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """Autoencoders of diffusers, and a StableCascade."""
    folder = tmp_path_factory.mktemp("saved")
    for name in autoencoders.SMALL:
        autoencoders.small_autoencoder(name).save_pretrained(folder / name)
    return folder


def clip(frames: int = 9, height: int = 128, width: int = 144) -> Tensor:
    return to_float(moving_frames(frames, height, width))[None]


def through(spec: str, place: str, dtype: torch.dtype = torch.float32) -> Tensor:
    options = CodecOptions(device=torch.device(place), dtype=dtype, steps=2)
    codec = build_codec(spec, options)
    codec.facts(), codec.made_with()
    decoded = codec.decode(codec.encode(clip()))
    assert decoded.device.type == place  # where it is measured
    assert decoded.shape == clip().shape
    return decoded.cpu()


@pytest.mark.parametrize("spec", [*OF_THE_CASCADE, "interpolate:", *PLAIN])
def test_codecs(device, tiny_config, spec):
    spec = f"{spec}{tiny_config}" if spec.endswith(":") or not spec else spec
    torch.testing.assert_close(through(spec, "cuda"), through(spec, "cpu"))


def test_h264_of_a_clip_on_the_device(device):
    codec = build_codec("h264:0.25", CodecOptions(device=torch.device("cuda")))
    assert (codec.decode(codec.encode(clip().cuda())) - clip()).abs().mean() < 0.1


@pytest.mark.slow
def test_stable_cascade(device, tmp_path):
    autoencoders.save_stable_cascade(tmp_path)
    spec = f"stablecascade:{tmp_path}"
    assert through(spec, "cuda").isfinite().all()  # its noise is drawn on the device


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in autoencoders.SMALL],
)
def test_codecs_of_diffusers(device, saved, name):
    spec = f"diffusers:{saved / name}"
    torch.testing.assert_close(through(spec, "cuda"), through(spec, "cpu"))


def test_codecs_in_low_precision(device, saved, tiny_config):
    for spec in (str(tiny_config), f"diffusers:{saved / 'AutoencoderDC'}"):
        assert (through(spec, "cuda", torch.bfloat16) - through(spec, "cpu")).abs().mean() < 0.1


@pytest.mark.parametrize("name", [name for name, m in METRICS.items() if not m.missing()])
def test_metrics(device, name):
    original = clip(3, 192, 176)[0]
    noise = torch.randn(original.shape, generator=torch.Generator().manual_seed(0))
    changed = (original + 0.1 * noise).clamp(-1, 1)
    on_device = METRICS[name](changed.cuda(), original.cuda())
    assert on_device.device.type == "cuda"
    torch.testing.assert_close(on_device.cpu(), METRICS[name](changed, original))


@pytest.mark.parametrize("name", ["psnr", "ssim"])
def test_metrics_of_a_reconstruction_do_not_wait(device, name):
    original = clip(3)[0].cuda()
    METRICS[name](original / 2, original)
    device.stalls.clear()
    METRICS[name](original / 2, original)
    assert not device.stalls
