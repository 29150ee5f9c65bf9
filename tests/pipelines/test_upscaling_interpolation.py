from dataclasses import replace

import pytest
import torch
from test_cascade import random_video, randomise, tiny_cascade, tiny_networks

from diffusion.models import VideoDiT
from diffusion.pipelines.conditioning import Conditioning
from diffusion.pipelines.interpolation import (
    repeat,
    stretch,
    stretched_length,
    stretched_pieces,
)
from diffusion.pipelines.upscaling import Upscaler, enlarge, reduce
from diffusion.utils.errors import ConfigError


def restored(upscaler, video):
    pipeline = upscaler.pipeline
    pieces = upscaler.pieces(video.split(2, dim=2))
    vae_latents = pipeline.restore_stream(pieces, video.shape[2], steps=1)
    return torch.cat(list(pipeline.decode_vae_stream(vae_latents, video.shape[2])), dim=2)


@pytest.mark.parametrize("condition", ["enlarged", "compressor"])
@pytest.mark.parametrize("size", [(32, 32), (40, 36)])
@pytest.mark.parametrize("scale", [2, 4])
def test_frames_become_larger(condition, size, scale):
    pipeline, video = tiny_cascade(), random_video(3, *size)
    out = restored(Upscaler(pipeline, scale, condition), video)
    # cut to this by whoever knows the video; what is more is padding
    assert out.shape[:3] == video.shape[:3]
    assert all(a >= scale * b for a, b in zip(out.shape[-2:], size, strict=True))
    assert all(a < scale * (b + 32) for a, b in zip(out.shape[-2:], size, strict=True))
    assert out.isfinite().all()


def test_a_refiner_of_vae_latents_needs_no_compressor():
    """The published arrangement: 4 condition channels, x0 are the VAE latents themselves."""
    refiner = randomise(VideoDiT(condition_channels=4, hidden_size=24, depth=1, num_heads=2))
    networks = replace(tiny_networks(), refiner=refiner)
    pipeline = tiny_cascade(networks, conditioning=Conditioning(upsampling=4, scale=0.13025))
    pipeline.compressor.encode = None
    upscaler, video = Upscaler(pipeline, 4, "vae"), random_video(2, 24, 40)
    (condition, _), *_ = upscaler.pieces([video])
    assert torch.equal(condition, pipeline.encode_vae(video))
    assert restored(upscaler, video).shape == (1, 3, 2, 96, 160)


def test_a_condition_that_does_not_fit_the_refiner_is_refused():
    with pytest.raises(ConfigError, match="takes 20 condition channels, condition 'vae' has 8"):
        Upscaler(tiny_cascade(), 4, "vae")
    with pytest.raises(ConfigError, match="'latent' is not one of enlarged, compressor, vae"):
        Upscaler(tiny_cascade(), 4, "latent")


def test_reducing_undoes_enlarging():
    smooth = enlarge(random_video(2, 6, 8), 4)
    assert (enlarge(reduce(smooth, 4), 4) - smooth).abs().mean() < 0.25 * smooth.std()
    constant = torch.full((1, 3, 1, 8, 8), 0.3)
    torch.testing.assert_close(reduce(enlarge(constant, 4), 4), constant)


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_frames_between_frames(chunk):
    ramp = torch.arange(5.0).view(1, 1, 5, 1, 1)
    out = torch.cat(list(stretch(ramp.split(chunk, dim=2), 4)), dim=2)
    assert out.shape[2] == stretched_length(5, 4) == 17
    torch.testing.assert_close(out.flatten(), torch.arange(17.0) / 4)
    shown = torch.cat(list(repeat(ramp.split(chunk, dim=2), 4)), dim=2)
    assert shown.flatten().tolist() == [i // 4 for i in range(17)]


def test_a_single_frame_has_nothing_between():
    x = torch.randn(1, 2, 1, 3, 3)
    assert torch.equal(torch.cat(list(stretch([x], 4)), dim=2), x)
    assert torch.equal(torch.cat(list(repeat([x], 4)), dim=2), x)


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_the_cascade_starts_from_a_cross_fade(chunk):
    pipeline, video = tiny_cascade(), random_video(3, 40, 32)
    pieces = list(stretched_pieces(pipeline, video.split(chunk, dim=2), 4))
    latents, shown = (torch.cat(parts, dim=2) for parts in zip(*pieces, strict=True))
    assert latents.shape == (1, 16, 9, 2, 1)
    assert shown.shape == (1, 3, 9, 64, 32)  # padded as the latents are
    torch.testing.assert_close(latents[:, :, ::4], pipeline.encode(video))
    torch.testing.assert_close(shown[:, :, 2, :40], (video[:, :, 0] + video[:, :, 1]) / 2)
    assert pipeline.restore(latents, steps=1, preview=shown).isfinite().all()
