import logging

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from video_files import encode, moving_frames

from diffusion.data.training import video_index
from diffusion.data.training.video_clips import VideoClips
from diffusion.data.training.video_index import index_videos
from diffusion.data.transforms import to_float
from diffusion.data.video.clip import read_frames
from diffusion.utils.errors import UserError

LONG_GOP = {"g": "24", "bf": "3", "x264-params": "open-gop=1:b-pyramid=normal:scenecut=0"}
FRONT = {"movflags": "+faststart"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two landscape videos and a portrait one."""
    folder = tmp_path_factory.mktemp("clips") / "videos"
    folder.mkdir()
    encode(folder / "a.mp4", moving_frames(40, 48, 64, seed=1), options=LONG_GOP)
    encode(folder / "b.mkv", moving_frames(30, 40, 72, seed=2), options=LONG_GOP)
    encode(folder / "tall.mp4", moving_frames(40, 80, 40, seed=3), options=LONG_GOP)
    return folder


@pytest.fixture
def clips(folder, tmp_path):
    def build(**options) -> VideoClips:
        fixed = {"video_list": [str(folder)], "cache_dir": str(tmp_path / "index")}
        fixed |= {"batch_size": 4, "size": 32, "num_frames": 3}
        return VideoClips(**fixed | options)

    return build


def test_batches_are_a_function_of_seed_and_step(clips):
    batch = clips(policy="random")(7)
    assert batch.video.shape == (4, 3, 3, 32, 32)
    assert batch.video.dtype == torch.uint8
    again = clips(policy="random")
    again(3)  # what came before does not matter
    assert torch.equal(again(7).video, batch.video)
    assert again(7).sources == batch.sources
    for other in (clips(policy="random")(8), clips(policy="random", seed=1)(7)):
        assert not torch.equal(other.video, batch.video)


def test_two_processes_draw_together_what_one_draws_alone(clips):
    buckets = [[32, 64], [64, 32]]
    for step in range(4):
        whole = clips(batch_size=4, size=buckets)(step)
        parts = [clips(batch_size=2, size=buckets, rank=r, world_size=2)(step) for r in (0, 1)]
        assert torch.equal(torch.cat([part.video for part in parts]), whole.video)


def test_clips_are_frames_of_the_video(clips, folder):
    """Native resolution, and every start and stride, against decoding from the beginning."""
    data = clips(
        video_list=[str(folder / "a.mp4")],
        batch_size=1,
        size=[32, 64],
        num_frames=4,
        frame_strides=[1, 5],
        policy="crop",
        crop="center",
    )
    frames = to_float(read_frames(folder / "a.mp4"))[:, :, 8:40]
    starts = {(start, stride) for stride in (1, 5) for start in range(40 - 3 * stride)}
    drawn = set()
    for step in range(25):
        clip = data(step).to("cpu").video[0]
        found = {
            (start, stride)
            for start, stride in starts
            for piece in [frames[:, start : start + 3 * stride + 1 : stride]]
            if torch.equal(clip, piece) or torch.equal(clip, piece.flip(3))
        }
        assert len(found) == 1
        drawn |= found
    assert {stride for _, stride in drawn} == {1, 5}
    assert len(drawn) > 15


def test_portrait_videos_land_in_portrait_buckets(clips, folder):
    data = clips(size=[[32, 64], [64, 32]], batch_size=3)
    shapes = set()
    for step in range(12):
        batch = data(step)
        height, width = batch.video.shape[-2:]
        assert {"tall.mp4" in source for source in batch.sources} == {height > width}
        shapes.add((height, width))
    assert shapes == {(32, 64), (64, 32)}


def test_the_smaller_video_is_enlarged_and_never_padded(clips, folder):
    for policy in ("crop", "resize", "random"):
        data = clips(video_list=[str(folder / "b.mkv")], size=[96, 192], policy=policy, flip=0)
        video = data(0).to("cpu").video
        assert video.shape[-2:] == (96, 192)
        border = torch.stack([video[..., 0, :], video[..., -1, :]]).flatten(0, 2)
        assert (border > -1).any(-1).all()
    whole = to_float(read_frames(folder / "b.mkv")).mean()
    data = clips(video_list=[str(folder / "b.mkv")], size=[160, 288], num_frames=30, flip=0)
    seen = data(0).to("cpu").video  # all of every frame
    assert seen.mean() == pytest.approx(whole.item(), abs=0.02)


def test_mirroring(clips, folder):
    fixed = {"video_list": [str(folder / "a.mp4")], "num_frames": 40, "crop": "center"}
    plain, mirrored = (clips(flip=flip, **fixed)(0).video for flip in (0, 1))
    assert torch.equal(plain.flip(4), mirrored)


def test_loader_processes_give_the_same_batches(clips, folder):
    data = clips(size=[[32, 64], [64, 32]])

    class Steps(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, step):
            return data(step)

    loader = DataLoader(Steps(), batch_size=None, num_workers=2, multiprocessing_context="fork")
    for step, batch in enumerate(loader):
        assert torch.equal(batch.video, data(step).video)


@pytest.fixture
def mixed(tmp_path):
    """A good video; one that breaks off; a short one, a picture and no video."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    encode(folder / "good.mp4", moving_frames(12, 48, 64), options=LONG_GOP)
    whole = encode(tmp_path / "w.mp4", moving_frames(60, 48, 64), container_options=FRONT)
    (folder / "cut.mp4").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    encode(folder / "short.mp4", moving_frames(4, 48, 64))
    Image.fromarray(moving_frames(1)[0]).save(folder / "still.png")
    (folder / "text.mp4").write_text("broken")
    return folder


def test_bad_videos_are_replaced_listed_and_named_once(clips, mixed, tmp_path, caplog):
    bad_list = tmp_path / "bad_videos.txt"
    options = {
        "video_list": [str(mixed)],
        "num_frames": 5,
        "max_bad_share": 0.9,
        "bad_list": bad_list,
    }
    with caplog.at_level(logging.WARNING):
        data = clips(**options)
        batches = [data(step) for step in range(6)]
    assert {source.rsplit("/")[-1] for batch in batches for source in batch.sources} <= {
        "good.mp4",
        "cut.mp4",
    }
    listed = dict(line.split("\t") for line in bad_list.read_text().splitlines())
    assert {name.rsplit("/")[-1] for name in listed} == {
        "cut.mp4",
        "short.mp4",
        "still.png",
        "text.mp4",
    }
    assert "has 4 frames, fewer than the 5" in listed[str(mixed / "short.mp4")]
    assert len(caplog.records) == 4
    again = clips(**options)
    assert all(torch.equal(again(step).video, batches[step].video) for step in (5, 2))


def test_too_many_bad_videos_stop_training(clips, mixed):
    with pytest.raises(UserError, match=r"3 of 5 videos cannot be used.*max_bad_share=0\.5"):
        clips(video_list=[str(mixed)], num_frames=5)
    data = clips(video_list=[str(mixed)], num_frames=5, max_bad_share=0.6)
    with pytest.raises(UserError, match=r"4 of 5 videos cannot be used.*cut\.mp4"):
        list(map(data, range(20)))


def test_a_list_without_usable_videos_stops_at_once(clips, mixed):
    paths = [str(mixed / name) for name in ("text.mp4", "short.mp4")]
    with pytest.raises(UserError, match=r"none of the 2 videos .* the first: .*text\.mp4: is not"):
        clips(video_list=paths, num_frames=5, max_bad_share=1.0)


def test_pictures_are_clips_of_one_frame(clips, mixed):
    batch = clips(video_list=[str(mixed / "still.png")], num_frames=1)(0)
    assert batch.video.shape == (4, 3, 1, 32, 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "stretch"}, "unknown policy 'stretch'; valid are: crop, resize, random"),
        ({"crop": "left"}, "unknown crop"),
        ({"size": 40}, "multiples of 32"),
        ({"frame_strides": [0]}, "at least 1"),
        ({"frame_strides": []}, "at least 1"),
        ({"num_frames": 0}, "at least 1"),
        ({"batch_size": 0}, "batch_size is 0, but must be at least 1"),
        ({"max_bad_share": 2}, "max_bad_share is 2"),
    ],
)
def test_impossible_options(clips, options, message):
    with pytest.raises(ValueError, match=message):
        clips(**options)


def test_frames_that_change_in_their_folder_are_read_again(clips, tmp_path):
    """The folder itself keeps its time and size."""
    folder = tmp_path / "frames"
    folder.mkdir()
    for size in (64, 32):
        for number in range(3):
            Image.new("RGB", (size, size)).save(folder / f"{number}.png")
        (facts,) = index_videos([folder], tmp_path / "index")
        assert facts.height == size


def test_sizes_are_read_once(clips, folder, tmp_path, monkeypatch):
    paths = sorted(folder.iterdir())
    facts = index_videos(paths, tmp_path / "index")
    assert [(f.height, f.width, f.num_frames) for f in facts] == [
        (48, 64, 40),
        (40, 72, 30),
        (80, 40, 40),
    ]
    read = []
    monkeypatch.setattr(video_index, "open_video", lambda path, **_: read.append(path))
    assert index_videos(paths, tmp_path / "index") == facts
    assert not read
    (tmp_path / "index" / "videos.json").write_text("damaged")
    monkeypatch.undo()
    assert index_videos(paths, tmp_path / "index") == facts


def test_changed_and_mended_files_are_read_anew(tmp_path):
    path = tmp_path / "x.mp4"
    assert "no such file" in index_videos([path], tmp_path / "index")[0].problem
    path.write_text("broken")
    assert index_videos([path], tmp_path / "index")[0].problem
    for count in (5, 6):
        encode(path, moving_frames(count))
        assert index_videos([path], tmp_path / "index")[0].num_frames == count


def test_folders_of_frames_are_videos(clips, tmp_path):
    frames = moving_frames(6, 32, 32)
    (tmp_path / "frames").mkdir()
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / "frames" / f"{number}.png")
    data = clips(video_list=[str(tmp_path / "frames")], num_frames=6, batch_size=1, flip=0)
    assert np.allclose(data(0).to("cpu").video[0], to_float(frames))
