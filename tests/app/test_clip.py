import numpy as np
import pytest
from video_files import moving_frames

from diffusion.app.clip import ClipOptions, read_clip
from diffusion.data.transforms import published_preprocess, to_uint8
from diffusion.data.video_io import VideoWriter, read_frames


@pytest.fixture
def path(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", 25) as writer:
        writer.write(moving_frames(5, 80, 96))
    return tmp_path / "a.mp4"


def test_published_preprocessing_is_an_option(path):
    clip = read_clip(path, ClipOptions(num_frames=2, size=64, published_preprocess=True))
    wanted = published_preprocess(read_frames(path, num_frames=2), 64)
    assert np.array_equal(to_uint8(clip.video), wanted)
    assert clip.video.shape[-2:] == (64, 64)  # cut to multiples of 32
    assert read_clip(path, ClipOptions(num_frames=2, size=64)).video.shape[-2:] == (64, 76)


def test_the_limits_hold_where_nothing_is_given(path):
    limited = ClipOptions(max_frames=3, max_short_edge=40)
    assert read_clip(path, limited).video.shape == (3, 3, 40, 48)
    asked = ClipOptions(num_frames=4, size=60, max_frames=3, max_short_edge=40)
    assert read_clip(path, asked).video.shape == (3, 4, 60, 72)
