import json

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    structural_similarity_index_measure,
)

from diffusion.evaluation.metrics.all_metrics import METRICS, gradient, ms_ssim, psnr, ssim
from diffusion.utils.errors import UserError

WITHOUT_WEIGHTS = [
    "psnr",
    "ssim",
    "effnet_lite0",
    "effnet_lite2",
    "gradient",
    "flicker",
    "warped_error",
    "vb_flickering",
]


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


def test_gradient_is_one_for_the_same_detail_and_less_for_blur():
    _, reference = pair()
    assert gradient(reference, reference).tolist() == pytest.approx([1, 1, 1])
    assert gradient(reference.flip(-1), reference).tolist() == pytest.approx([1, 1, 1])
    assert gradient(reference / 2, reference).tolist() == pytest.approx([0.25] * 3, rel=1e-3)
    still = torch.zeros_like(reference)
    assert gradient(still, still).tolist() == [1, 1, 1]  # nothing to see, and finite


@pytest.mark.parametrize("name", WITHOUT_WEIGHTS)
def test_metrics_without_downloads_work_and_prefer_less_damage(name):
    metric = METRICS[name]
    assert metric.missing() is None
    generator = torch.Generator().manual_seed(1)
    smooth = torch.nn.functional.interpolate(
        torch.rand(3, 1, 8, 12, generator=generator), (64, 96), mode="bicubic"
    )
    reference = (smooth * 2 - 1) * torch.linspace(0.7, 0.9, 4).view(4, 1, 1)
    noise = torch.randn(reference.shape, generator=generator)
    slight, strong = ((reference + level * noise).clamp(-1, 1) for level in (0.02, 0.2))
    count = reference.shape[1] - (metric.least_frames - 1)
    values = [metric(video, reference) for video in (reference, slight, strong)]
    assert [value.shape for value in values] == [(count,)] * 3
    ideal, little, much = (metric.summarize([value]) for value in values)
    if metric.higher_is_better is None:
        assert ideal == pytest.approx(1)
        assert abs(ideal - 1) < abs(little - 1) < abs(much - 1)
    else:
        assert (ideal > little > much) if metric.higher_is_better else (ideal < little < much)


def test_videos_are_averaged_by_video_whatever_their_length():
    assert METRICS["psnr"].summarize([torch.tensor([30.0, 32]), torch.tensor([20.0])]) == 25.5


def test_what_cannot_be_measured_is_said_in_one_line():
    video, reference = pair()
    with pytest.raises(UserError, match="ms_ssim needs 176 pixels a side or more: 40x24"):
        METRICS["ms_ssim"](video, reference)
    with pytest.raises(UserError, match="flicker needs 2 frames or more, not 1"):
        METRICS["flicker"](video[:, :1], reference[:, :1])
    with pytest.raises(ValueError, match="compares two videos"):
        METRICS["psnr"](video, reference[:, :2])
    assert METRICS["ms_ssim"].unfit(1, 176, 176) is None


def test_every_metric_describes_itself_for_the_results_file():
    for name, metric in METRICS.items():
        assert metric.name == name
        facts = metric.describe()
        assert json.loads(json.dumps(facts)) == facts
        assert facts["definition"]
        assert facts["missing"] is None or "\n" not in facts["missing"]
    weights = METRICS["effnet_lite2"].describe()["weights"]
    assert [len(digits) for digits in weights.values()] == [64]
