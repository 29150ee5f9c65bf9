import numpy as np
import pytest
import torch
from video_files import moving_frames

from diffusion.app.reconstruction.clip_source import ClipOptions, open_clip
from diffusion.data.transforms import published_preprocess, to_uint8
from diffusion.data.video.clip import read_frames
from diffusion.data.video.video_writer import VideoWriter


@pytest.fixture
def path(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", 25) as writer:
        writer.write(moving_frames(5, 80, 96))
    return tmp_path / "a.mp4"


def read(path, options, chunk=100):
    """The whole clip (3, F, H, W)."""
    return torch.cat(list(open_clip(path, options).chunks(chunk)), dim=1)


def test_published_preprocessing_is_an_option(path):
    video = read(path, ClipOptions(num_frames=2, size=64, published_preprocess=True))
    wanted = published_preprocess(read_frames(path, num_frames=2), 64)
    assert np.array_equal(to_uint8(video), wanted)
    assert video.shape[-2:] == (64, 64)  # cut to multiples of 32
    assert read(path, ClipOptions(num_frames=2, size=64)).shape[-2:] == (64, 76)


def test_the_limits_hold_where_nothing_is_given(path):
    limited = ClipOptions(max_frames=3, max_short_edge=40)
    assert read(path, limited).shape == (3, 3, 40, 48)
    asked = ClipOptions(num_frames=4, size=60, max_frames=3, max_short_edge=40)
    assert read(path, asked).shape == (3, 4, 60, 72)


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_chunks_are_the_clip(path, chunk):
    options = ClipOptions(start=1, frame_stride=2, square=True, size=40)
    clip = open_clip(path, options)
    assert (clip.num_frames, clip.fps, clip.height, clip.width) == (2, 12.5, 40, 40)
    for _ in range(2):  # it can be read again
        assert torch.equal(read(path, options, chunk), read(path, options))
