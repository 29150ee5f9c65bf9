import pytest
import torch
from safetensors.torch import load_file

from diffusion.data.latent_cache import RandomLatents, save_shard
from diffusion.utils.errors import UserError


@pytest.fixture
def shard(tmp_path):
    """6 frames of 4x5 semantic latents; the VAE's latents say where they are."""
    semantic = torch.arange(6 * 4 * 5).view(1, 6, 4, 5).float()
    target = semantic.repeat_interleave(4, 2).repeat_interleave(4, 3)
    path = tmp_path / "x.safetensors"
    save_shard(path, {"semantic": semantic, "target": target, "base": target / 2}, "video.mp4")
    return path


def latents(path, **options):
    fixed = {"folder": str(path.parent), "batch_size": 3, "size": 8, "num_frames": 2}
    return RandomLatents(**fixed | options)


def test_pieces_of_all_tensors_belong_together(shard):
    batch = latents(shard)(0)
    assert batch.semantic.shape == (3, 1, 2, 2, 2)
    assert batch.target.shape == batch.base.shape == (3, 1, 2, 8, 8)
    assert batch.target.dtype == torch.float32
    assert torch.equal(batch.target, 2 * batch.base)
    assert torch.equal(batch.target[..., ::4, ::4], batch.semantic)
    assert batch.sources == ["video.mp4"] * 3
    assert len(batch.semantic.flatten(1).unique(dim=0)) > 1


def test_every_piece_is_reached(shard):
    data = latents(shard, batch_size=32)
    corners = torch.cat([data(step).semantic[:, 0, 0, 0, 0] for step in range(20)]).unique()
    assert len(corners) == 5 * 3 * 4


def test_batches_are_a_function_of_seed_rank_and_step(shard):
    data = latents(shard)
    data(1)
    assert torch.equal(data(5).target, latents(shard)(5).target)
    assert not torch.equal(data(5).target, data(6).target)
    assert not torch.equal(data(5).target, latents(shard, rank=1)(5).target)
    assert not torch.equal(data(5).target, latents(shard, seed=1)(5).target)


def test_a_refiner_without_base_needs_none(shard):
    tensors = load_file(shard)
    del tensors["base"]
    save_shard(shard, tensors, "video.mp4")
    batch = latents(shard)(0)
    assert batch.base is None
    assert batch.to("cpu").base is None


def test_stored_as_half_precision_and_whole(shard):
    assert {tensor.dtype for tensor in load_file(shard).values()} == {torch.float16}
    assert [path.name for path in shard.parent.iterdir()] == [shard.name]


def test_what_cannot_be_used_is_named(shard, tmp_path):
    with pytest.raises(UserError, match=r"absent: holds no latents; run tools/prepare_latents\.py"):
        latents(tmp_path / "absent" / "x")
    with pytest.raises(UserError, match="6 frames of 4x5 semantic latents are too few"):
        latents(shard, num_frames=7)(0)
    with pytest.raises(UserError, match="too few"):
        latents(shard, size=20)(0)
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"x\.safetensors: not a readable shard"):
        latents(shard)(0)
