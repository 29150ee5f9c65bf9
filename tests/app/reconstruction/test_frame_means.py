import pytest
import torch
from pretend_cuda import pretend_cuda

from diffusion.app.reconstruction.frame_means import FrameMeans
from diffusion.app.reconstruction.stage_times import Stages
from diffusion.evaluation.metrics.fidelity import psnr, ssim


def test_means_are_those_of_all_frames_however_they_come():
    torch.manual_seed(0)
    original = torch.rand(3, 7, 20, 24) * 2 - 1
    video = (original + 0.1 * torch.randn_like(original)).clamp(-1, 1)
    means = FrameMeans(Stages())
    for piece in (slice(0, 3), slice(3, 4), slice(4, 7)):
        means.add("preview_", video[:, piece], original[:, piece])
    wanted = {"preview_psnr": psnr(video, original), "preview_ssim": ssim(video, original)}
    measured = means.over(7)
    assert measured.keys() == wanted.keys()
    for name, values in wanted.items():
        assert measured[name] == pytest.approx(values.double().mean().item(), abs=1e-6)


def test_nothing_waits_for_the_device_until_means_are_asked_for():
    with pretend_cuda() as device:
        stages = Stages("cpu")  # whose own waiting is not meant here
        means = FrameMeans(stages)
        video = torch.rand(3, 2, 16, 16).to("cuda")
        original = torch.rand(3, 2, 16, 16)
        means.add("", video, original)
        device.stalls.clear()
        for _ in range(3):
            means.add("", video, original)
        assert not device.stalls
        assert means.over(8)["psnr"] > 0
