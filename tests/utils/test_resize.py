import golden_data
import pytest
import torch

from diffusion.utils.resize import resize_bilinear


@pytest.mark.parametrize("name", golden_data.cases("upsample"))
def test_conditions_are_resized_as_published(name):
    meta, t = golden_data.load(name)
    latents, scale, down = t["lat"], meta["scale"], meta["down"]
    height, width = latents.shape[-2:]
    up = resize_bilinear(latents, (scale * height, scale * width))
    assert golden_data.relative_error(up, t["up"]) <= 1e-6
    condition = golden_data.to_frames(up * meta["scale_factor"])
    assert golden_data.relative_error(condition, t["z_ref"]) <= 1e-6
    small = resize_bilinear(latents, (height // down, width // down))
    assert golden_data.relative_error(small, t["down"]) <= 1e-6


def test_frames_and_videos_stay_apart():
    video = torch.randn(2, 3, 4, 6, 10)
    out = resize_bilinear(video, (9, 5))
    assert out.shape == (2, 3, 4, 9, 5)
    torch.testing.assert_close(
        resize_bilinear(video[1:, :, 2:3], (9, 5)), out[1:, :, 2:3], atol=1e-6, rtol=0
    )
