import numpy as np
import pytest
from PIL import Image
from video_files import encode, moving_frames

from diffusion.data.training.batch import seeded
from diffusion.data.training.segments import camera_motion, places, read_segment, shrink
from diffusion.data.video.clip import read_frames
from diffusion.utils.errors import VideoError


def test_segments_spread_over_the_video(tmp_path):
    path = encode(tmp_path / "x.mp4", moving_frames(40), options={"g": "10"})
    frames = read_frames(path)
    for word in range(4):
        starts = []
        for place in places(2):
            piece = read_segment(path, place, 3, 2, seeded(word))
            starts += [s for s in range(36) if np.array_equal(piece, frames[s : s + 5 : 2])]
        assert len(starts) == 2
        assert starts[0] < 18 <= starts[1]


def test_a_video_as_long_as_its_only_segment(tmp_path):
    path = encode(tmp_path / "x.mp4", moving_frames(5))
    assert np.array_equal(read_segment(path, (0.5, 1.0), 5, 1, seeded(0)), read_frames(path))
    with pytest.raises(VideoError, match="has 5 frames, fewer than the 7 that 4 with stride 2"):
        read_segment(path, (0, 1), 4, 2, seeded(0))


def test_a_photograph_becomes_a_camera_motion(tmp_path):
    picture = np.zeros((200, 250, 3), np.uint8)
    picture[..., 0], picture[..., 1] = np.mgrid[:200, :250]  # every pixel says where it is
    Image.fromarray(picture).save(tmp_path / "x.png")
    clip = read_segment(tmp_path / "x.png", (0, 1), 6, 1, seeded(1))
    _, height, width, _ = clip.shape
    assert 150 <= height <= 180
    assert 187 <= width <= 225
    corners = clip[:, 0, 0, :2].astype(int)
    for frame, (top, left) in zip(clip, corners, strict=True):
        assert np.array_equal(frame, picture[top : top + height, left : left + width])
    steps = np.diff(corners, axis=0)
    assert (steps != 0).any(1).all()
    assert (np.abs(steps - steps.mean(0)) <= 1).all()  # even, but for whole pixels
    assert np.array_equal(clip, camera_motion(picture, 6, seeded(1)))


def test_shrinking():
    frames = moving_frames(4, 96, 160)
    for word in range(10):
        _, count, height, width = shrink(frames, (64, 96), seeded(word)).shape
        assert count == 4
        assert height % 32 == width % 32 == 0
        assert 64 <= height <= 96
    assert shrink(frames, (128, 256), seeded(0)).shape[2:] == (128, 192)  # enlarged to the least
