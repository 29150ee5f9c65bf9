import json
from dataclasses import replace

import pytest
import torch
from noisy_videos import pair

from diffusion.evaluation.metrics.all_metrics import METRICS
from diffusion.evaluation.metrics.sharpness import gradient
from diffusion.utils.compute import Compute
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


def test_metrics_are_computed_in_float32_whatever_a_gpu_may_do_around_them():
    seen = []

    def compute(video, reference):
        seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
        seen.append((torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()))
        return video.mean((0, 2, 3))

    metric = replace(METRICS["psnr"], compute=compute)
    with Compute(tf32=True).applied(), torch.autocast("cpu", torch.bfloat16):
        metric(*pair())
    assert seen == [(False, False), (False, False)]
