import golden_data
import numpy as np
import pytest
import torch
from PIL import Image
from pretend_cuda import pretend_cuda
from video_files import moving_frames

from diffusion.data.training.crops import to_clip
from diffusion.data.transforms import (
    center_crop,
    crop_square,
    crop_to_multiple,
    published_preprocess,
    resize,
    resize_short_edge,
    side_by_side,
    to_float,
    to_uint8,
)
from diffusion.data.video.open_video import open_video
from diffusion.utils.errors import UserError


def test_every_level_survives_the_round_trip():
    levels = np.arange(256, dtype=np.uint8)
    frames = np.stack([levels, levels[::-1], np.roll(levels, 7)], axis=-1).reshape(2, 8, 16, 3)
    video = to_float(frames)
    assert video.shape == (3, 2, 8, 16)
    assert video.dtype == torch.float32
    assert (video.min(), video.max()) == (-1, 1)
    assert np.array_equal(to_uint8(video), frames)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_accepted(dtype):
    assert to_uint8(torch.tensor([-1, 0.5, 1], dtype=dtype).view(3, 1, 1, 1)).ravel().tolist() == [
        0,
        191,
        255,
    ]


def test_rounding_truncating_and_clamping():
    video = torch.tensor([-7.0, 100.7 / 127.5 - 1, 3.0]).view(3, 1, 1, 1)
    assert to_uint8(video).ravel().tolist() == [0, 101, 255]
    assert to_uint8(video, rounding=False).ravel().tolist() == [0, 100, 255]


def test_not_a_number_is_not_a_colour():
    with pytest.raises(ValueError, match="NaN"):
        to_uint8(torch.full((3, 1, 2, 2), float("nan")))


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [((405, 720), 256, (256, 456)), ((720, 405), 256, (456, 256)), ((33, 47), 64, (64, 92))],
)
@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
def test_resize_short_edge_keeps_the_aspect(shape, size, expected, mode):
    video = torch.rand(3, 2, *shape) * 2 - 1
    resized = resize_short_edge(video, size, mode=mode)
    assert resized.shape == (3, 2, *expected)
    assert resized.abs().max() <= 1
    assert resized.mean() == pytest.approx(video.mean().item(), abs=5e-3)


def test_resize_is_antialiased():
    stripes = torch.ones(3, 1, 64, 64)
    stripes[..., ::2] = -1
    assert resize(stripes, 16, 16)[..., 4:-4].abs().max() < 0.05


def test_resize_to_the_same_size_is_the_identity():
    video = torch.randn(3, 2, 8, 8)
    assert torch.equal(resize_short_edge(video, 8), video)


def test_crops_are_central():
    video = torch.arange(70 * 100).view(1, 1, 70, 100).float()
    assert torch.equal(center_crop(video, 10, 20), video[..., 30:40, 40:60])
    assert crop_to_multiple(video, 32).shape[-2:] == (64, 96)
    assert torch.equal(crop_to_multiple(video, 32), video[..., 3:67, 2:98])
    assert torch.equal(crop_square(video), video[..., :, 15:85])


def test_crops_that_do_not_fit_are_refused():
    video = torch.zeros(3, 1, 30, 70)
    with pytest.raises(UserError, match="70x30"):
        crop_to_multiple(video, 32)
    with pytest.raises(UserError, match="resize"):
        center_crop(video, 31, 20)


def test_published_preprocess():
    meta, tensors = golden_data.load("rescale_a")
    for index, item in enumerate(meta["items"]):
        bgr = tensors[f"in{index}"].flip(-1).numpy()
        want = tensors[f"out{index}"].numpy().astype(int)
        got = published_preprocess(bgr[None], item["short_edge"], item["size_div"])[0]
        assert got.shape == want.shape
        assert np.abs(got - want).max() <= 1
        assert np.abs(got - want).mean() < 0.2


def test_published_pixel_range():
    meta, tensors = golden_data.load("pixels_a")
    got = to_float(tensors["u8_fhwc"])[None]
    tolerance = meta["suggested_rel_tol"]["preprocessed"]
    assert golden_data.relative_error(got, tensors["preprocessed"]) < tolerance


def test_published_comparison_picture():
    _, tensors = golden_data.load("pixels_a")
    got = side_by_side([tensors["vid_a"][0], tensors["vid_b"][0]])
    got = to_uint8(got, rounding=False).astype(int)
    want = tensors["visualized"].numpy()
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= 1
    assert np.abs(got - want).mean() < 0.1


@pytest.mark.filterwarnings("error")
def test_frames_that_may_not_be_written_to(tmp_path):
    """Pillow's and mapped ones: torch warns of them, and what is written to them is undefined."""
    frames = moving_frames(2, 32, 32)
    kept = frames.copy()
    frames.flags.writeable = False
    assert torch.equal(to_float(frames), to_float(kept))
    assert np.array_equal(published_preprocess(frames, 32), published_preprocess(kept, 32))
    assert torch.equal(to_clip(frames, (16, 16), flip=True), to_clip(kept, (16, 16), flip=True))
    Image.fromarray(kept[0]).save(tmp_path / "still.png")
    with open_video(tmp_path / "still.png") as reader:
        (frame,) = reader.frames()
    assert torch.equal(to_float(frame[None]), to_float(kept[:1]))
    assert np.array_equal(frames, kept)


def test_pixels_on_a_gpu():
    """Nothing mixes devices, and the numbers are those of the CPU."""
    frames = moving_frames(2, 48, 40)
    original, small = to_float(frames), to_float(frames[:1, :24, :20])
    shown, sized = side_by_side([original, small]), resize_short_edge(original, 32)
    with pretend_cuda():
        there = torch.from_numpy(frames).to("cuda")
        assert to_float(there).device.type == "cuda"
        assert np.array_equal(to_uint8(to_float(there)), frames)
        for first, second in ((original.to("cuda"), small), (original, small.to("cuda"))):
            both = side_by_side([first, second])
            assert both.device == first.device
            torch.testing.assert_close(both.cpu(), shown)
        torch.testing.assert_close(resize_short_edge(original.to("cuda"), 32).cpu(), sized)
