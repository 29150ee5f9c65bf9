import json

import pytest
import torch
from safetensors.torch import load_file

from diffusion.data.training.latent_folder import LatentFolder, clip_name, read_index
from diffusion.data.training.random_latents import RandomLatents
from diffusion.utils.errors import UserError

MADE_WITH = {"model_id": "tiny", "weights of vae": "ab12"}


def clip(frames=6, rows=4, columns=5, first=0):
    """Semantic latents that count up; the VAE's latents say where they are."""
    count = frames * rows * columns
    semantic = torch.arange(first, first + count).view(1, frames, rows, columns).float()
    target = semantic.repeat_interleave(4, 2).repeat_interleave(4, 3)
    return {"semantic": semantic, "target": target, "base": target / 2}


def write(folder, *clips, shard_clips=2):
    output = LatentFolder(folder, MADE_WITH, shard_clips)
    for i, tensors in enumerate(clips):
        output.add(f"clip{i}", f"video{i}.mp4", tensors)
    assert output.finish() == len(clips)
    return folder


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "latents", clip())


def latents(folder, **options):
    fixed = {"folder": str(folder), "batch_size": 3, "size": 8, "num_frames": 2}
    return RandomLatents(**fixed | options)


def test_pieces_of_all_tensors_belong_together(folder):
    batch = latents(folder)(0)
    assert batch.semantic.shape == (3, 1, 2, 2, 2)
    assert batch.target.shape == batch.base.shape == (3, 1, 2, 8, 8)
    assert batch.target.dtype == torch.float16  # as stored
    assert torch.equal(batch.target, 2 * batch.base)
    assert torch.equal(batch.target[..., ::4, ::4], batch.semantic)
    assert batch.sources == ["video0.mp4"] * 3
    assert len(batch.semantic.flatten(1).unique(dim=0)) > 1


@pytest.mark.parametrize(("size", "places"), [(8, 5 * 3 * 4), ([8, 16], 5 * 3 * 2)])
def test_every_piece_is_reached(folder, size, places):
    data = latents(folder, batch_size=32, size=size)
    corners = torch.cat([data(step).semantic[:, 0, 0, 0, 0] for step in range(20)]).unique()
    assert len(corners) == places


def test_batches_are_a_function_of_seed_and_step(folder):
    data = latents(folder)
    data(1)
    assert torch.equal(data(5).target, latents(folder)(5).target)
    assert not torch.equal(data(5).target, data(6).target)
    assert not torch.equal(data(5).target, latents(folder, seed=1)(5).target)


def test_two_processes_draw_together_what_one_draws_alone(tmp_path):
    folder = write(tmp_path / "x", clip(), clip(first=200), clip(rows=5, columns=4, first=400))
    for step in range(4):
        size = [[8, 16], [16, 8]]
        whole = latents(folder, batch_size=4, size=size)(step)
        parts = [
            latents(folder, batch_size=2, size=size, rank=r, world_size=2)(step) for r in (0, 1)
        ]
        assert torch.equal(torch.cat([part.target for part in parts]), whole.target)
        assert parts[0].sources + parts[1].sources == whole.sources


def test_clips_of_several_shapes(tmp_path, caplog):
    folder = write(tmp_path / "x", clip(), clip(rows=5, columns=4), clip(rows=1), clip(frames=1))
    data = latents(folder, size=[[8, 16], [16, 8]])
    for step in range(10):
        batch = data(step)
        rows, columns = batch.target.shape[-2:]
        assert set(batch.sources) == ({"video0.mp4"} if columns > rows else {"video1.mp4"})
    assert {tuple(data(step).target.shape[-2:]) for step in range(10)} == {(8, 16), (16, 8)}


def test_a_refiner_without_base_needs_none(tmp_path):
    tensors = clip()
    del tensors["base"]
    batch = latents(write(tmp_path / "x", tensors))(0)
    assert batch.base is None
    assert batch.to("cpu").base is None


def test_shards_hold_several_clips_in_half_precision(tmp_path):
    folder = write(tmp_path / "x", *(clip(first=100 * i) for i in range(5)))
    shards = sorted(folder.glob("*.safetensors"))
    assert [len(load_file(shard)) for shard in shards] == [6, 6, 3]
    assert {t.dtype for shard in shards for t in load_file(shard).values()} == {torch.float16}
    assert not any((folder / "pieces").iterdir())
    index = read_index(folder)
    assert [(c.clip, c.source) for c in index] == [(f"clip{i}", f"video{i}.mp4") for i in range(5)]
    assert {(c.frames, c.height, c.width, c.upsampling) for c in index} == {(6, 16, 20, 4)}
    for i, entry in enumerate(index):
        stored = load_file(folder / entry.shard)[f"{entry.clip}.semantic"]
        assert torch.equal(stored, clip(first=100 * i)["semantic"].half())


def test_a_stopped_run_keeps_what_was_added(tmp_path):
    first = LatentFolder(tmp_path, MADE_WITH, 2)
    for i in range(3):
        first.add(f"clip{i}", "video.mp4", clip(first=i))
    del first  # killed: two clips in a shard, one waiting, no index
    (tmp_path / "pieces" / ".clip2.safetensors.1.partial").write_text("half")
    again = LatentFolder(tmp_path, MADE_WITH, 2)
    assert [again.has(f"clip{i}", "video.mp4") for i in range(4)] == [True, True, True, False]
    again.add("clip3", "video.mp4", clip(first=3))
    assert again.finish() == 4
    assert not any((tmp_path / "pieces").iterdir())
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_a_run_killed_between_shard_and_pieces(tmp_path):
    folder = write(tmp_path / "x", clip(), clip())
    (folder / "pieces" / "clip0.safetensors").write_text("was packed")
    again = LatentFolder(folder, MADE_WITH, 2)
    assert again.has("clip0", "video0.mp4")
    assert again.finish() == 2
    assert not any((folder / "pieces").iterdir())


def test_processes_share_a_folder(tmp_path):
    """Whoever finishes last, the index names the clips of both."""
    one, two = (LatentFolder(tmp_path, MADE_WITH, 2) for _ in range(2))
    one.add("a", "a.mp4", clip())
    two.add("b", "b.mp4", clip())
    assert one.finish() == 1
    assert two.finish() == 2
    assert [entry.clip for entry in read_index(tmp_path)] == ["a", "b"]


def test_a_folder_made_with_something_else_is_refused(folder):
    made_with = MADE_WITH | {"weights of vae": "cd34"}
    with pytest.raises(UserError, match="was made with weights of vae ab12, not cd34; choose ano"):
        LatentFolder(folder, made_with, 2)
    (folder / "made_with.json").unlink()
    with pytest.raises(UserError, match="holds files of another kind"):
        LatentFolder(folder, MADE_WITH, 2)


def test_what_cannot_be_used_is_named(folder, tmp_path):
    with pytest.raises(UserError, match=r"absent: holds no encoded.*python tools/prepare_latents"):
        latents(tmp_path / "absent")
    with pytest.raises(UserError, match="7 frames of size 8; the first has 6 frames of 16x20"):
        latents(folder, num_frames=7)
    with pytest.raises(UserError, match="no clip is large enough"):
        latents(folder, size=20)
    with pytest.raises(ValueError, match="multiples of 4"):
        latents(folder, size=6)
    shard = next(folder.glob("*.safetensors"))
    data = latents(folder)
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"clip0\.safetensors: is no readable shard; delete it"):
        data(0)
    with pytest.raises(UserError, match=r"clip0\.safetensors: is no readable shard; delete it"):
        LatentFolder(folder, MADE_WITH, 2)
    (folder / "index.jsonl").write_text(json.dumps({"clip": "x"}) + "\n")
    with pytest.raises(UserError, match=r"index\.jsonl: is damaged"):
        latents(folder)


def test_videos_that_are_not_encoded_are_counted(tmp_path, caplog):
    caplog.set_level("INFO")
    videos = [tmp_path / name for name in ("old.mp4", "new.mp4")]
    for video in videos:
        video.touch()
    output = LatentFolder(tmp_path / "latents", MADE_WITH, 2)
    output.add(clip_name(videos[0], 0), "old.mp4", clip())
    output.finish()
    latents(tmp_path / "latents", video_list=[str(videos[0])])
    latents(tmp_path / "latents", video_list=["moved away"])  # latents serve without their videos
    assert not caplog.records
    latents(tmp_path / "latents", video_list=list(map(str, videos)))
    assert "1 of 2 videos of video_list have no clips" in caplog.text
    assert str(videos[1]) in caplog.text
