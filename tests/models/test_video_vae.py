import golden_data
import pytest
import safetensors.torch
import torch
from diffusers.utils import torch_utils
from einops import rearrange
from torch import nn
from torch.nn import functional

from diffusion.models.video_vae import VideoVAE
from diffusion.models.weights import FOLDER_FILES, load_weights
from diffusion.utils.errors import UserError


@pytest.fixture(scope="module")
def golden():
    return golden_data.load("tvae_a")


@pytest.fixture(scope="module")
def published(golden, tmp_path_factory):
    """The full-size VAE, loaded from a folder like the published one."""
    meta, _ = golden
    folder = tmp_path_factory.mktemp("vae")
    file = folder / FOLDER_FILES[1]
    safetensors.torch.save_file(golden_data.case_weights(meta["weights"]), file)
    vae = VideoVAE(decode_chunk=meta["decode_slice"], decode_overlap=0).eval().requires_grad_(False)
    load_weights(vae, folder)
    file.unlink()  # 390 MB
    return vae


def tiny_vae(**options) -> VideoVAE:
    """Random weights, 2x compression; its decoder does mix frames."""
    torch.manual_seed(0)
    return VideoVAE(block_out_channels=(32, 32), layers_per_block=1, **options).eval()


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


# Parity with the published VAE.


def test_posterior_mean_matches(golden, published):
    meta, tensors = golden
    latents = published.encode(tensors["video"]) / 0.13025
    assert golden_data.relative_error(latents, tensors["mode"]) < meta["suggested_rel_tol"]["mode"]


def test_posterior_sample_matches(golden, published, monkeypatch):
    meta, tensors = golden
    noise = golden_data.to_video(tensors["posterior_noise"], num_frames=3)
    monkeypatch.setattr(torch_utils, "randn_tensor", lambda *args, **kwargs: noise)
    latents = published.encode(tensors["video"], sample_posterior=True) / 0.13025
    tolerance = meta["suggested_rel_tol"]["sample"]
    assert golden_data.relative_error(latents, tensors["sample"]) < tolerance


def test_decoding_independent_slices_matches(golden, published):
    meta, tensors = golden
    video = published.decode(tensors["lat"] * 0.13025)
    assert golden_data.relative_error(video, tensors["dec"]) < meta["suggested_rel_tol"]["dec"]


def test_attributes_describe_the_published_latents(golden, published):
    _, tensors = golden
    frames, height, width = tensors["video"].shape[2:]
    assert tensors["mode"].shape[1] == published.latent_channels == 4
    assert tensors["mode"].shape[2] * published.temporal_compression == frames
    assert tensors["mode"].shape[3] * published.spatial_compression == height
    assert tensors["mode"].shape[4] * published.spatial_compression == width
    assert published.scaling_factor == 0.13025
    assert published.shift_factor == 0


# Encoding.


@pytest.mark.parametrize("chunk", [1, 4])
def test_chunks_do_not_change_the_latents(chunk):
    vae = tiny_vae(encode_chunk=chunk)
    video = torch.rand(2, 3, 3, 8, 12) * 2 - 1
    mean, std = vae.posterior(video)
    vae.encode_chunk = 100
    whole_mean, whole_std = vae.posterior(video)
    torch.testing.assert_close(mean, whole_mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(std, whole_std, rtol=1e-4, atol=1e-5)


def test_sample_is_one_draw_of_the_generator_whatever_the_chunks():
    vae = tiny_vae(encode_chunk=2, scaling_factor=1.0)
    video = torch.rand(1, 3, 5, 8, 8) * 2 - 1
    sample = vae.encode(video, sample_posterior=True, generator=torch.Generator().manual_seed(3))
    mean, std = vae.posterior(video)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(sample, mean + std * noise)
    other = vae.encode(video, sample_posterior=True, generator=torch.Generator().manual_seed(4))
    assert not torch.allclose(sample, other)


def test_mean_draws_no_random_numbers():
    vae = tiny_vae()
    state = torch.get_rng_state()
    vae.encode(torch.zeros(1, 3, 1, 8, 8))
    assert torch.equal(torch.get_rng_state(), state)


def test_latents_are_shifted_and_scaled_both_ways():
    plain = tiny_vae(scaling_factor=1.0)
    scaled = tiny_vae(scaling_factor=0.5, shift_factor=2.0)
    video = torch.rand(1, 3, 2, 8, 8) * 2 - 1
    latents = plain.encode(video)
    torch.testing.assert_close(scaled.encode(video), (latents - 2.0) * 0.5)
    torch.testing.assert_close(
        scaled.decode((latents - 2.0) * 0.5), plain.decode(latents), rtol=1e-4, atol=1e-5
    )


def test_it_encodes_in_float32_where_float16_would_compute():
    """As `force_upcast` of the published folder asks for; what comes in may be float16 already."""
    video = torch.rand(1, 3, 2, 16, 24) * 2 - 1
    exact = tiny_vae().encode(video.half().float())
    with torch.autocast("cpu", torch.float16):
        assert torch.equal(tiny_vae().encode(video.half()), exact)
        rounded = tiny_vae(force_upcast=False).encode(video.half())
    assert rounded.dtype == torch.float16
    assert not torch.equal(rounded.float(), exact)
    with torch.autocast("cpu", torch.bfloat16):  # which has float32's range
        assert tiny_vae().encode(video).dtype == torch.bfloat16


def test_sizes_that_would_be_cut_are_refused():
    with pytest.raises(UserError, match=r"8x9 pixels .* multiples of 2"):
        tiny_vae().encode(torch.zeros(1, 3, 1, 8, 9))


# Decoding.


class FramewiseDecoder(nn.Module):
    """Stands in for the decoder; without mixing in time, chunks must not show at all."""

    def forward(self, frames, num_frames, image_only_indicator):
        assert num_frames == image_only_indicator.shape[1] <= 8
        return functional.interpolate(frames[:, :3], scale_factor=2)


@pytest.mark.parametrize("overlap", [0, 1, 4, 7])
@pytest.mark.parametrize("num_frames", [1, 2, 7, 8, 9, 13, 16, 21])
def test_every_frame_is_covered_once_in_total(num_frames, overlap):
    vae = tiny_vae(decode_chunk=8, decode_overlap=overlap, scaling_factor=1.0)
    vae.decoder = FramewiseDecoder()
    latents = torch.randn(2, 4, num_frames, 3, 2)
    frames = rearrange(latents[:, :3], "b c f h w -> (b f) c h w")
    whole = rearrange(
        functional.interpolate(frames, scale_factor=2), "(b f) c h w -> b c f h w", b=2
    )
    torch.testing.assert_close(vae.decode(latents), whole)


@pytest.mark.parametrize("num_frames", [1, 5, 8])
def test_a_clip_of_one_chunk_is_decoded_whole(num_frames):
    latents = torch.randn(1, 4, num_frames, 4, 4)
    chunked = tiny_vae(decode_chunk=8, decode_overlap=4).decode(latents)
    whole = tiny_vae(decode_chunk=100, decode_overlap=0).decode(latents)
    assert torch.equal(chunked, whole)


def test_without_overlap_chunks_are_independent():
    vae = tiny_vae(decode_chunk=4, decode_overlap=0)
    latents = torch.randn(1, 4, 8, 4, 4)
    parts = [vae.decode(part) for part in latents.split(4, dim=2)]
    assert torch.equal(vae.decode(latents), torch.cat(parts, dim=2))


def test_videos_of_a_batch_do_not_mix():
    vae = tiny_vae()
    latents = torch.randn(2, 4, 11, 4, 4)
    alone = torch.cat([vae.decode(video) for video in latents.split(1)])
    torch.testing.assert_close(vae.decode(latents), alone, rtol=1e-4, atol=1e-5)


def test_overlap_reduces_flicker_at_the_borders():
    latents = torch.randn(1, 4, 1, 8, 8).expand(-1, -1, 32, -1, -1)  # nothing moves

    def flicker(overlap):
        video = tiny_vae(decode_chunk=8, decode_overlap=overlap).decode(latents)
        steps = video.diff(dim=2).abs().mean(dim=(0, 1, 3, 4))
        return steps[8:-8].max()  # away from the clip's own ends

    assert flicker(overlap=0) > 0.01  # the chunks do show
    assert flicker(overlap=4) < 0.5 * flicker(overlap=0)


@pytest.mark.parametrize(("chunk", "overlap"), [(4, 4), (4, -1), (0, 0)])
def test_an_overlap_that_does_not_advance_is_refused(chunk, overlap):
    with pytest.raises(UserError, match=f"decode_overlap={overlap} .* decode_chunk={chunk}"):
        tiny_vae(decode_chunk=chunk, decode_overlap=overlap)
