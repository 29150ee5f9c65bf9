"""The weights that ship: whole, small enough, and better than the linear codes they start from."""

import pytest
import torch

from diffusion.config import ROOT, load_config
from diffusion.data.video.clip import read_video
from diffusion.evaluation.metrics.fidelity import psnr
from diffusion.pipelines.cascade_builder import build_cascade


@pytest.fixture(scope="module")
def pipeline():
    return build_cascade(load_config("configs/compact.effn-f32.py"))


@pytest.fixture(scope="module")
def clip() -> torch.Tensor:
    """(1, 3, 1, 384, 704) of the example, so that nothing is padded."""
    video = read_video(ROOT / "example" / "city.mp4", start=40, num_frames=1).video
    return video[None, ..., :384, :704]


def quality(video: torch.Tensor, reference: torch.Tensor) -> float:
    return psnr(video[0].clamp(-1, 1), reference[0]).mean().item()


def test_weights_stay_within_their_budget():
    files = list((ROOT / "pretrained").rglob("*.safetensors"))
    assert files
    assert sum(file.stat().st_size for file in files) <= 48e6


def test_preview_beats_the_linear_code(pipeline, clip):
    linear = pipeline.compressor.encoder.linear
    code = linear.decode(linear.encode(clip[:, :, 0]))[:, :, None]
    assert quality(pipeline.preview(pipeline.encode(clip)), clip) > quality(code, clip) + 0.2


def test_vae_beats_the_linear_code(pipeline, clip):
    alone = build_cascade(load_config("configs/compact.effn-f32.py"), only=("vae",))
    linear = alone.vae.encoder.linear
    code = linear.decode(linear.encode(clip[:, :, 0]))[:, :, None]
    latents = alone.encode_vae(clip)
    assert quality(alone.decode_vae(latents), clip) > quality(code, clip) + 1.5
    # the cascade's decoder is made for other latents
    assert quality(pipeline.decode_vae(latents), clip) < quality(alone.decode_vae(latents), clip)


def test_a_sample_costs_no_more_than_theory_allows(pipeline, clip):
    """A draw from the posterior has at most twice the squared error of its mean: 3 dB."""
    part = clip[..., 128:256, 128:256]
    latents = pipeline.encode(part)
    preview = quality(pipeline.preview(latents), part)
    assert quality(pipeline.decode(latents), part) > preview - 3
