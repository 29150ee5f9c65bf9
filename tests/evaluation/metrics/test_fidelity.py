"""PSNR and structural similarity against independent computations of both."""

import numpy as np
import pytest
import torch
from noisy_videos import pair
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    structural_similarity_index_measure,
)

from diffusion.evaluation.metrics import fidelity
from diffusion.evaluation.metrics.fidelity import ms_ssim, psnr, ssim


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


def as_scikit(video: torch.Tensor) -> list[np.ndarray]:
    """(3, F, H, W) -> F pictures (H, W, 3) of doubles."""
    return list(video.double().permute(1, 2, 3, 0).numpy())


def test_psnr_is_that_of_scikit_image():
    video, reference = pair()
    expected = [
        peak_signal_noise_ratio(b, a, data_range=2)
        for a, b in zip(as_scikit(video), as_scikit(reference), strict=True)
    ]
    assert psnr(video, reference).tolist() == pytest.approx(expected, abs=1e-5)


def test_ssim_is_that_of_scikit_image():
    """Which continues edges otherwise: its map of pictures that are continued already is ours."""
    video, reference = pair()
    margin = 11
    expected = []
    for a, b in zip(as_scikit(video), as_scikit(reference), strict=True):
        a, b = (np.pad(x, [(margin, margin)] * 2 + [(0, 0)], "reflect") for x in (a, b))
        _, similarity = structural_similarity(
            (a + 1) / 2,
            (b + 1) / 2,
            data_range=1,
            channel_axis=2,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            full=True,
        )
        expected.append(similarity[margin:-margin, margin:-margin].mean())
    assert ssim(video, reference).tolist() == pytest.approx(expected, abs=1e-4)


def test_ssim_and_ms_ssim_are_those_of_torchmetrics():
    video, reference = pair(frames=2, height=176, width=200)
    a, b = ((x.permute(1, 0, 2, 3) + 1) / 2 for x in (video, reference))
    for i, got in enumerate(zip(ssim(video, reference), ms_ssim(video, reference), strict=True)):
        frame = (a[i : i + 1], b[i : i + 1])
        expected = (
            structural_similarity_index_measure(*frame, data_range=1.0),
            multiscale_structural_similarity_index_measure(*frame, data_range=1.0),
        )
        assert torch.stack(got).tolist() == pytest.approx(torch.stack(expected).tolist(), abs=1e-5)


@pytest.mark.parametrize("size", [(1, 200, 176), (3, 176, 190)])
def test_bands_of_rows_make_the_whole(monkeypatch, size):
    """Large frames are measured band by band, so that their maps stay in a cache."""
    video, reference = pair(*size)
    whole = ssim(video, reference), ms_ssim(video, reference)
    for rows in (1, 7, 64):
        monkeypatch.setattr(fidelity, "CPU_VALUES", rows * 3 * size[2])
        bands = ssim(video, reference), ms_ssim(video, reference)
        torch.testing.assert_close(bands, whole, rtol=0, atol=1e-7)


def test_dark_and_bright_pictures_keep_their_digits():
    """A tenth of a level on white: what float32 leaves of squares near 1 is not enough."""
    noise = torch.randn(3, 1, 180, 180, generator=torch.Generator().manual_seed(0))
    reference = torch.ones(3, 1, 180, 180) - 0.02
    video = reference + 1e-3 * noise
    a, b = (x.double()[:, 0].numpy() / 2 + 0.5 for x in (video, reference))
    expected = np.mean([ssim_of_wang(*planes, peak=1) for planes in zip(a, b, strict=True)])
    assert ssim(video, reference).item() == pytest.approx(expected, abs=1e-6)
