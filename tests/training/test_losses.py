import pytest
import torch

from diffusion.models.feature_distance import PerceptualDistance
from diffusion.training.draws import Draws
from diffusion.training.losses import (
    FeatureDiscriminator,
    PictureLoss,
    charbonnier,
    hinge_losses,
    random_view,
)
from diffusion.utils.errors import ConfigError


def test_charbonnier_is_square_near_zero_and_linear_far_away():
    difference = torch.tensor([0.0])
    assert charbonnier(difference) == pytest.approx(1e-2)
    assert charbonnier(torch.tensor([100.0])) == pytest.approx(100, rel=1e-4)
    assert charbonnier(torch.tensor([1e-3])) - 1e-2 == pytest.approx(1e-6 / 2e-2, rel=2e-2)


def test_pixels_can_be_judged_by_their_psnr(frames):
    """20 log10(2 / RMSE), but for sign and unit: the mean of every frame's own."""
    levels = torch.tensor([0.02, 0.2]).view(2, 1, 1, 1)
    (value,) = PictureLoss(0, 0, "log_rmse")(frames + levels, frames, {}).values()
    assert value.item() == pytest.approx(levels.log().mean().item(), abs=1e-4)
    with pytest.raises(ConfigError, match="'mse' is not one of charbonnier, log_rmse"):
        PictureLoss(0, 0, "mse")


@pytest.fixture(scope="module")
def perceptual():
    return PerceptualDistance()


@pytest.fixture(scope="module")
def frames():
    rows = torch.linspace(-3, 3, 64)
    waves = torch.sin(4 * rows)[:, None] * torch.cos(7 * rows)
    return torch.stack([waves, waves.T]).unsqueeze(1).repeat(1, 3, 1, 1)


def test_equal_frames_have_no_distance(perceptual, frames):
    assert perceptual(frames, frames).tolist() == pytest.approx([0, 0], abs=1e-6)


def test_distance_grows_with_the_damage(perceptual, frames):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(frames.shape, generator=generator)
    distances = torch.stack([perceptual(frames + level * noise, frames) for level in (0.05, 0.3)])
    assert distances.shape == (2, 2)
    assert (distances[0] > 0).all()
    assert (distances[1] > distances[0]).all()


def test_the_gradient_goes_to_the_reconstruction_alone(perceptual, frames):
    reconstruction = (0.5 * frames).requires_grad_()
    original = frames.clone().requires_grad_()
    perceptual(reconstruction, original).sum().backward()
    assert reconstruction.grad.abs().max() > 0
    assert original.grad is None
    assert all(p.grad is None for p in perceptual.parameters())


def test_training_mode_leaves_the_statistics_alone(perceptual, frames):
    before = perceptual.net.bn1.running_mean.clone()
    perceptual.train()
    perceptual(frames, frames)
    assert torch.equal(perceptual.net.bn1.running_mean, before)


def test_a_judgement_trains_the_discriminator_or_the_decoder_never_both(perceptual, frames):
    torch.manual_seed(0)
    discriminator = FeatureDiscriminator()
    fake = (0.5 * frames).requires_grad_()
    losses = hinge_losses(discriminator, perceptual.features(frames), perceptual.features(fake))
    of_judge, of_decoder = losses
    of_judge.backward(retain_graph=True)
    assert fake.grad is None
    assert all(p.grad.abs().max() > 0 for p in discriminator.parameters() if p.dim() > 1)
    discriminator.zero_grad()
    of_decoder.backward()
    assert fake.grad.abs().max() > 0
    assert all(p.grad is None for p in discriminator.parameters())


def test_the_discriminator_learns_to_tell_soft_frames_and_to_approve_sharp_ones(perceptual):
    torch.manual_seed(0)
    discriminator = FeatureDiscriminator()
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-3)
    for _ in range(30):
        sharp = torch.randn(4, 3, 64, 64)
        soft = torch.nn.functional.avg_pool2d(sharp, 3, 1, 1)
        real, fake = perceptual.features(sharp), perceptual.features(soft)
        of_judge, of_decoder = hinge_losses(discriminator, real, fake)
        optimizer.zero_grad()
        of_judge.backward()
        optimizer.step()
    assert of_judge < 1
    approved = hinge_losses(discriminator, real, real)[1]
    assert approved < of_decoder - 0.5


def test_a_view_shows_the_same_piece_of_all_frames(frames):
    sizes = set()
    for step in range(12):
        draws = Draws(seed=0, step=step, first=0, count=1)
        view = random_view(draws, 64, 64)
        seen = view(frames)
        assert torch.equal(view(frames[:1]), seen[:1])
        torch.testing.assert_close(view(2 * frames + 1), 2 * seen + 1)
        sizes.add(seen.shape[-2:])
    assert len(sizes) > 4
    assert all(0.75 * 0.8 * 64 - 8 <= side <= 1.3 * 64 + 8 for size in sizes for side in size)


def test_features_are_those_of_a_view_and_pixels_those_of_the_frames(frames):
    damaged = frames.clone()
    damaged[..., 40:] += 0.5
    loss = PictureLoss(1.0, 0.0)
    seen = loss(damaged, frames, {}, view=lambda x: x[..., :32])
    assert seen["perceptual"] < 1e-6
    assert seen["pixels"] == loss(damaged, frames, {})["pixels"] > 0.1
