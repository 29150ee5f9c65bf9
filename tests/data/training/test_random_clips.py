import logging

import numpy as np
import pytest
import torch
from PIL import Image
from video_files import encode, moving_frames

from diffusion.data.training.frame_cache import read_first_frames
from diffusion.data.training.random_clips import RandomClips
from diffusion.data.transforms import to_float
from diffusion.utils.errors import UserError, VideoError

LOSSLESS = {"codec": "libx264rgb", "pix_fmt": "rgb24", "options": {"crf": "0"}}


@pytest.fixture
def folder(tmp_path):
    """Two videos, a picture, a broken video and a file of another kind."""
    folder = tmp_path / "videos"
    folder.mkdir()
    encode(folder / "a.mp4", moving_frames(6, 48, 64, seed=1))
    encode(folder / "b.MKV", moving_frames(3, 64, 48, seed=2), **LOSSLESS)
    Image.fromarray(moving_frames(1, 80, 72, seed=3)[0]).save(folder / "c.png")
    (folder / "d.mp4").write_text("broken")
    (folder / "notes.md").write_text("no video")
    return folder


def clips(folder, **options) -> RandomClips:
    fixed = {"video_list": [str(folder)], "cache_dir": str(folder.parent / "cache")}
    return RandomClips(**fixed | {"batch_size": 4, "size": 32, "num_frames": 2} | options)


def test_batches_are_a_function_of_seed_and_step(folder):
    batch = clips(folder)(7)
    assert batch.video.shape == (4, 3, 2, 32, 32)
    assert batch.video.dtype == torch.uint8
    again = clips(folder)
    again(3)  # what came before does not matter
    assert torch.equal(again(7).video, batch.video)
    assert again(7).sources == batch.sources
    for other in (clips(folder)(8), clips(folder, seed=1)(7)):
        assert not torch.equal(other.video, batch.video)


def test_two_processes_draw_together_what_one_draws_alone(folder):
    whole = clips(folder, batch_size=4)(3)
    parts = [clips(folder, batch_size=2, rank=rank, world_size=2)(3) for rank in (0, 1)]
    assert torch.equal(torch.cat([part.video for part in parts]), whole.video)
    assert parts[0].sources + parts[1].sources == whole.sources
    with pytest.raises(ValueError, match="rank 2 is not below world_size 2"):
        clips(folder, rank=2, world_size=2)


def test_broken_videos_are_named_once_and_left_out(folder, caplog):
    with caplog.at_level(logging.WARNING):
        data = clips(folder)
        sources = {source for step in range(20) for source in data(step).sources}
    assert sources == {str(folder / name) for name in ("a.mp4", "b.MKV", "c.png")}
    assert [record.getMessage() for record in caplog.records] == [
        f"left out: {folder / 'd.mp4'}: is not a video file that can be read "
        "(Invalid data found when processing input); mp4, mov, mkv, webm, avi and mpg are"
    ]


def test_nothing_that_can_be_read(folder):
    with pytest.raises(UserError, match=r"none of the 1 videos .* can be used; the first.*d\.mp4"):
        clips(folder, video_list=[str(folder / "d.mp4")])


def test_decoded_frames_are_kept(folder):
    batch = clips(folder, video_list=[str(folder / "b.MKV")])(0)
    cached = sorted((folder.parent / "cache").glob("*.npy"))
    assert len(cached) == 1
    assert np.array_equal(np.load(cached[0]), moving_frames(3, 64, 48, seed=2))
    written = cached[0].stat().st_mtime_ns
    assert torch.equal(clips(folder, video_list=[str(folder / "b.MKV")])(0).video, batch.video)
    assert cached[0].stat().st_mtime_ns == written

    # another video under the same name is not the one in the cache
    encode(folder / "b.MKV", moving_frames(5, 64, 48, seed=9), **LOSSLESS)
    assert not torch.equal(clips(folder, video_list=[str(folder / "b.MKV")])(0).video, batch.video)


def test_pictures_and_short_videos_repeat_their_last_frame(folder):
    video = clips(folder, video_list=[str(folder / "c.png")], num_frames=3)(0).video
    assert torch.equal(video[:, :, 0], video[:, :, 1])
    assert torch.equal(video[:, :, 0], video[:, :, 2])
    video = clips(folder, video_list=[str(folder / "b.MKV")], num_frames=5)(0).video
    assert not torch.equal(video[:, :, 1], video[:, :, 2])
    assert torch.equal(video[:, :, 2], video[:, :, 4])


def test_crops_are_pieces_of_the_frames(folder):
    data = clips(
        folder,
        video_list=[str(folder / "b.MKV")],
        num_frames=2,
        frame_strides=[2],
        max_downscale=1.0,
        batch_size=1,
    )
    frames = moving_frames(3, 64, 48, seed=2)[::2]
    for step in range(4):
        clip = data(step).to("cpu").video[0]
        candidates = [
            to_float(piece)
            for top in range(33)
            for left in range(17)
            for piece in (frames[:, top : top + 32, left : left + 32],)
        ]
        assert any(torch.equal(clip, c) or torch.equal(clip, c.flip(3)) for c in candidates)


def test_videos_smaller_than_the_crop_are_enlarged(folder):
    assert clips(folder, size=128)(0).video.shape[-2:] == (128, 128)


def test_pictures_that_cannot_be_read(folder):
    (folder / "e.png").write_text("broken")
    with pytest.raises(VideoError, match=r"e\.png: is not a picture"):
        read_first_frames(folder / "e.png", 4)
