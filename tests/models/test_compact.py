import numpy as np
import pytest
import torch
from einops import rearrange

from diffusion.models.compact import (
    BlockDecoder,
    BlockEncoder,
    CompactCompressor,
    CompactPreviewer,
    CompactVAE,
    LinearBlocks,
)

SMALL = {"stem": 2, "channels": (8, 8), "depths": (1, 1), "blocks": ("conv", "wide")}  # f4


def pictures(num: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """(N, 3, H, W) in [-1, 1]: smooth, so that few components hold most of them."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(num, 3, height // 4, width // 4, generator=generator) * 2 - 1
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(-1, 1)


def blocks_of(frames: torch.Tensor, block: int) -> np.ndarray:
    """Rows of the pixels of each block, written without the code under test."""
    rows = rearrange(frames, "n c (h p) (w q) -> (n h w) (c p q)", p=block, q=block)
    return rows.double().numpy()


def fitted(components: int, block: int = 4) -> tuple[LinearBlocks, torch.Tensor]:
    linear, frames = LinearBlocks(block, components), pictures(6, 32, 48)
    linear.fit([frames])
    return linear, frames


@pytest.mark.parametrize("components", [1, 4, 16])
def test_no_linear_code_of_the_size_is_better(components):
    """The error is that of the truncated SVD (Eckart and Young), by numpy."""
    linear, frames = fitted(components)
    error = (linear.decode(linear.encode(frames)) - frames).double().square().sum().item()
    rows = blocks_of(frames, 4)
    singular = np.linalg.svd(rows - rows.mean(0), compute_uv=False)
    assert error == pytest.approx((singular[components:] ** 2).sum(), rel=1e-3)


def test_the_code_is_white():
    linear, frames = fitted(6)
    code = rearrange(linear.encode(frames), "n c h w -> c (n h w)").double()
    torch.testing.assert_close(code.mean(1), torch.zeros(6).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.cov(code), torch.eye(6).double(), atol=1e-3, rtol=0)


def test_all_components_lose_nothing():
    linear, frames = fitted(48)
    torch.testing.assert_close(linear.decode(linear.encode(frames)), frames, atol=1e-4, rtol=0)


def test_the_linear_code_keeps_float32_under_autocast():
    linear, frames = fitted(16)
    with torch.autocast("cpu", torch.bfloat16):
        code = linear.encode(frames.bfloat16())
        decoded = linear.decode(code)
    assert code.dtype == decoded.dtype == torch.float32


def test_an_untrained_network_is_the_linear_code():
    frames = pictures(6, 32, 48)
    encoder, decoder = BlockEncoder(4, **SMALL), BlockDecoder(4, **SMALL)
    assert encoder.spatial_compression == decoder.spatial_compression == 4
    encoder.linear.fit([frames])
    decoder.linear.load_state_dict(encoder.linear.state_dict())
    latents = encoder(frames)
    assert torch.equal(latents, encoder.linear.encode(frames))
    assert torch.equal(decoder(latents), encoder.linear.decode(latents))


def test_every_part_of_a_network_learns():
    """After one step no gradient is zero for ever: what starts at zero lets the rest move."""
    torch.manual_seed(0)
    encoder = BlockEncoder(4, **SMALL)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    for _ in range(4):
        optimizer.zero_grad()
        encoder(pictures(2, 16, 16)).square().mean().backward()
        optimizer.step()
    assert all(p.grad.abs().max() > 0 for p in encoder.parameters())


SIZES = {"channels": (8, 8, 8), "depths": (1, 1, 1), "stem": 8, "frames_per_chunk": 4}


@pytest.mark.parametrize("size", [(1, 1, 32, 32), (2, 5, 64, 32), (1, 9, 32, 96)])
def test_shapes_for_any_frame_count(size):
    batch, frames, height, width = size
    video = torch.rand(batch, 3, frames, height, width) * 2 - 1
    compressor, previewer = CompactCompressor(**SIZES), CompactPreviewer(**SIZES)
    latents = compressor.encode(video)
    assert latents.shape == (batch, 16, frames, height // 32, width // 32)
    preview = previewer.decode(latents)
    assert preview.shape == video.shape
    assert preview.abs().max() <= 1
    assert (compressor.spatial_compression, previewer.upscaling) == (32, 32)

    vae = small_vae()
    assert vae.encode(video).shape == (batch, 4, frames, height // 8, width // 8)
    assert vae.decode(vae.encode(video)).shape == video.shape


def small_vae(**options) -> CompactVAE:
    sides = {"encoder_channels": (8, 8), "decoder_channels": (8, 8)}
    depths = {"encoder_depths": (1, 1), "decoder_depths": (1, 1)}
    return CompactVAE(**sides, **depths, **options)


def test_frames_do_not_see_each_other():
    vae, video = small_vae(frames_per_chunk=2), torch.rand(1, 3, 5, 16, 16)
    latents = vae.encode(video)
    for i in range(5):
        torch.testing.assert_close(vae.encode(video[:, :, i : i + 1]), latents[:, :, i : i + 1])


def test_posterior_samples_are_drawn_from_the_generator():
    vae = small_vae(posterior_std=0.3)
    video = torch.rand(1, 3, 4, 64, 64)

    def sample(seed):
        return vae.encode(video, True, torch.Generator().manual_seed(seed))

    mean = vae.encode(video)
    assert torch.equal(vae.encode(video), mean)
    assert torch.equal(sample(1), sample(1))
    assert not torch.equal(sample(1), sample(2))
    assert (sample(1) - mean).std().item() == pytest.approx(0.3, rel=0.1)
