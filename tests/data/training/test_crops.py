import numpy as np
import pytest
import torch
from video_files import moving_frames

from diffusion.data.training.batch import seeded
from diffusion.data.training.crops import nearest_size, parse_sizes, place_window, to_clip


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (64, [(64, 64)]),
        ([64, 96], [(64, 96)]),
        ([[64, 96]], [(64, 96)]),
        ([[64, 96], [96, 64]], [(64, 96), (96, 64)]),
    ],
)
def test_sizes(size, expected):
    assert parse_sizes(size, 32) == expected


@pytest.mark.parametrize("size", [60, [64, 60], [[64, 64, 64]], 0, [-32, 32], []])
def test_impossible_sizes(size):
    with pytest.raises(ValueError, match=r"multiples of 32|size is empty"):
        parse_sizes(size, 32)


def test_every_frame_goes_to_the_size_of_its_shape():
    sizes = [(1024, 1024), (768, 1344), (1344, 768)]
    assert [nearest_size(frame, sizes) for frame in [(720, 720), (1080, 1920), (1920, 1080)]] == [
        0,
        1,
        2,
    ]


@pytest.mark.parametrize("frame", [(50, 80), (80, 50), (32, 64), (20, 30), (500, 33)])
@pytest.mark.parametrize("zoom", [1.0, 1.7, np.inf])
def test_windows_lie_in_the_frame_and_have_the_shape_of_the_clip(frame, zoom):
    for word in range(20):
        window = place_window(frame, (32, 64), zoom, seeded(word))
        assert 0 <= window.top <= frame[0] - window.height
        assert 0 <= window.left <= frame[1] - window.width
        largest = min(frame[0] / 32, frame[1] / 64)
        assert window.height == pytest.approx(32 * min(zoom, largest), abs=0.51)
        assert window.width == pytest.approx(64 * min(zoom, largest), abs=0.51)


def test_central_window():
    window = place_window((50, 81), (32, 32), 1.0, None)
    assert (window.top, window.left, window.height, window.width) == (9, 24, 32, 32)


def test_clips_are_the_pixels_of_the_window():
    frames = moving_frames(2, 40, 60)
    window = place_window((40, 60), (32, 32), 1.0, seeded(0))
    top, left = window.top, window.left
    expected = frames[:, top : top + 32, left : left + 32]
    expected = torch.from_numpy(expected).permute(3, 0, 1, 2)
    assert torch.equal(to_clip(window.cut(frames), (32, 32), flip=False), expected)
    assert torch.equal(to_clip(window.cut(frames), (32, 32), flip=True), expected.flip(3))
    assert to_clip(window.cut(frames), (64, 96), flip=True).shape == (3, 2, 64, 96)
