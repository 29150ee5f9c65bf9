"""Metrics of motion, on motion that is known."""

import numpy as np
import pytest
import torch
from scipy import linalg

from diffusion.evaluation.metrics.consistency import consistency
from diffusion.evaluation.metrics.rfvd import frechet_distance
from diffusion.evaluation.metrics.temporal import (
    flicker,
    flow_and_visibility,
    optical_flow,
    vbench_flickering,
    warped_error,
)

WAVES = ((5, 9, 0), (7, -6, 1), (11, 4, 2), (8, 3.3, 0.5), (20, 31, 0.2))


def texture(right: float, down: float, height: int = 64, width: int = 96) -> torch.Tensor:
    """(3, H, W) in [-1, 1]: waves, shifted by these pixels."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin((x - right) / a + (y - down) / b + phase) for a, b, phase in WAVES]
    return torch.from_numpy(np.stack([np.sum(waves, 0) / 5] * 3)).float()


def moving(right: float, down: float, frames: int = 3) -> torch.Tensor:
    """(3, F, H, W)."""
    return torch.stack([texture(i * right, i * down) for i in range(frames)], dim=1)


@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.5, 0.25), (3, -2), (-6, 4)])
def test_flow_finds_a_shift(shift):
    before, after = (texture(*s)[None] for s in ((0, 0), shift))
    grey = (x.mean(1, keepdim=True) for x in (before, after))
    inner = optical_flow(*grey)[0, :, 16:-16, 16:-16]
    assert inner.mean((1, 2)).tolist() == pytest.approx(shift, abs=0.25)
    motion, visible = flow_and_visibility(before, after)
    assert motion.shape == (1, 2, 64, 96)
    assert visible.shape == (1, 1, 64, 96)
    assert visible[..., 16:-16, 16:-16].mean() > 0.95
    if shift[0] > 1:  # what leaves on the right has nothing to be compared with
        assert visible[..., -2:].mean() < 0.5


def test_flow_scales_with_the_frame():
    before, after = (
        torch.nn.functional.interpolate(texture(*s)[None], (512, 768), mode="bilinear")
        for s in ((0, 0), (0.5, 0.25))
    )
    motion, _ = flow_and_visibility(before, after)
    inner = motion[0, :, 128:-128, 128:-128]
    assert inner.mean((1, 2)).tolist() == pytest.approx([4, 2], abs=0.5)


def test_an_error_that_moves_with_the_content_counts_less_than_one_that_does_not():
    original = moving(3, -2)
    carried = moving(3, -2) * 0.9  # contrast is lost, everywhere alike
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(original.shape, generator=generator)
    fresh = original + noise * (carried - original).square().mean().sqrt()
    assert warped_error(original, original).tolist() == [0, 0]
    assert (3 * warped_error(carried, original) < warped_error(fresh, original)).all()


def test_warped_error_of_known_noise():
    """A still original: error differences of independent noise, sqrt(2) of it, are half-normal."""
    original = texture(0, 0)[:, None].repeat(1, 4, 1, 1)
    noise = torch.randn(original.shape, generator=torch.Generator().manual_seed(0))
    level = 4 / 127.5
    expected = 4 * 2 / np.pi**0.5
    got = warped_error(original + level * noise, original)
    assert got.tolist() == pytest.approx([expected] * 3, rel=0.05)


def test_a_cut_is_measured_all_over():
    scene = texture(0, 0)
    other = torch.rand(scene.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    original = torch.stack([scene, other], dim=1)
    assert torch.isfinite(warped_error(original * 0.9, original)).all()
    flat = torch.stack([scene * 0, scene * 0 + 1], dim=1)
    assert warped_error(flat + torch.tensor([0, 2 / 255]).view(2, 1, 1), flat).item() > 0.5


def test_flicker_is_relative_to_the_original():
    original = moving(1, 0)
    assert flicker(original, original).tolist() == pytest.approx([1, 1])
    assert flicker(original / 2, original).tolist() == pytest.approx([0.5, 0.5], abs=0.02)
    still = original[:, :1].repeat(1, 3, 1, 1)
    assert flicker(still, original).max() < 0.03
    assert flicker(still, still).tolist() == [1, 1]


def test_vbench_flickering_is_of_8_bit_frames():
    video = moving(1, 0).clamp(-1, 1)
    levels = ((video.numpy() + 1) * 127.5).round().astype(int)
    expected = [(255 - np.abs(levels[:, i + 1] - levels[:, i]).mean()) / 255 for i in range(2)]
    assert vbench_flickering(video, video).tolist() == pytest.approx(expected, abs=1e-5)


def test_consistency_is_vbenchs_formula():
    features = np.random.default_rng(0).normal(size=(5, 7))
    units = features / np.linalg.norm(features, axis=1, keepdims=True)
    expected = [
        (max(0, units[i] @ units[i - 1]) + max(0, units[i] @ units[0])) / 2 for i in range(1, 5)
    ]
    assert consistency(torch.from_numpy(features)).tolist() == pytest.approx(expected, abs=1e-6)
    assert consistency(torch.ones(4, 3)).tolist() == pytest.approx([1, 1, 1])


def test_frechet_distance_is_that_of_the_matrix_square_root():
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(40, 6)), generator.normal(0.5, 2, size=(40, 6))
    root = linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    pairs = [torch.tensor(np.stack(pair)) for pair in zip(a, b, strict=True)]
    assert frechet_distance(pairs) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance([torch.stack([p[0], p[0]]) for p in pairs]) == pytest.approx(
        0, abs=1e-9
    )
    shifted = [torch.stack([p[0], p[0] + 3]) for p in pairs[:3]]  # fewer videos than dimensions
    assert frechet_distance(shifted) == pytest.approx(6 * 9)
    assert frechet_distance(shifted[:1]) == pytest.approx(6 * 9)  # of one, the means' distance
