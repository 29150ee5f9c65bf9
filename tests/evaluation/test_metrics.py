import numpy as np
import pytest
import torch

from diffusion.evaluation.metrics import psnr, ssim


def pair(frames: int = 3, height: int = 24, width: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    reference = torch.rand(3, frames, height, width, generator=generator) * 2 - 1
    noise = torch.randn(reference.shape, generator=generator)
    levels = torch.linspace(0.02, 0.2, frames).view(-1, 1, 1)
    return (reference + levels * noise).clamp(-1, 1), reference


def test_psnr_is_that_of_8_bit_colours():
    video, reference = pair()
    a, b = (((x.numpy().astype(np.float64) + 1) / 2 * 255) for x in (video, reference))
    expected = [20 * np.log10(255 / np.sqrt(np.mean((a[:, i] - b[:, i]) ** 2))) for i in range(3)]
    assert psnr(video, reference).tolist() == pytest.approx(expected, abs=1e-4)


def test_psnr_of_known_differences():
    reference = torch.zeros(3, 2, 8, 8)
    video = torch.stack([reference[:, 0] + 0.2, reference[:, 1] - 0.02], dim=1)
    assert psnr(video, reference).tolist() == pytest.approx([20, 40], abs=1e-4)
    assert psnr(reference, reference).min() > 100  # finite, so that means can be taken


def ssim_of_wang(a: np.ndarray, b: np.ndarray, peak: float) -> float:
    """The paper's formula on one (H, W) plane: window of 11, sigma 1.5, edges reflected."""
    offsets = np.arange(11) - 5
    kernel = np.exp(-(offsets**2) / (2 * 1.5**2))
    kernel /= kernel.sum()

    def blur(x):
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, 5, "reflect"), (11, 11))
        return np.einsum("hwij,i,j->hw", windows, kernel, kernel)

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    similarity = ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)) / (
        (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    )
    return similarity.mean()


def test_ssim_is_that_of_the_paper():
    video, reference = pair()
    a, b = (((x.double().numpy() + 1) / 2 * 255) for x in (video, reference))
    expected = [
        np.mean([ssim_of_wang(a[c, i], b[c, i], peak=255) for c in range(3)]) for i in range(3)
    ]
    got = ssim(video, reference)
    assert got.tolist() == pytest.approx(expected, abs=1e-4)
    assert got.tolist() == sorted(got.tolist(), reverse=True)  # more noise, less similar
    assert ssim(reference, reference).tolist() == pytest.approx([1, 1, 1])


def test_frames_are_measured_on_their_own():
    video, reference = pair()
    for metric in (psnr, ssim):
        alone = [metric(video[:, i : i + 1], reference[:, i : i + 1]).item() for i in range(3)]
        assert metric(video, reference).tolist() == pytest.approx(alone)
