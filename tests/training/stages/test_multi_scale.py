import pytest
import torch

from diffusion.training.draws import Draws
from diffusion.training.stages.multi_scale import crops, random_pieces, split_frames
from diffusion.utils.errors import UserError


def draws(step: int, first: int = 0, count: int = 2) -> Draws:
    return Draws(seed=0, step=step, first=first, count=count)


def positions(batch: int, frames: int, height: int, width: int) -> torch.Tensor:
    """(B, 4, F, H, W): every value's clip, frame, row and column."""
    axes = [torch.arange(n) for n in (batch, frames, height, width)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=1).float()


def test_crops_are_clip_by_clip():
    x = positions(2, 3, 8, 10)
    out = crops(x, 4, [(0, 6), (3, 1)])
    assert torch.equal(out[0], x[0, :, :, :4, 6:])
    assert torch.equal(out[1], x[0, :, :, 3:7, 1:5])
    assert torch.equal(out[3], x[1, :, :, 3:7, 1:5])


def test_frames_are_split_in_consecutive_groups():
    out = split_frames(positions(2, 8, 1, 1), 4)
    assert out.shape == (8, 4, 2, 1, 1)
    assert out[:, 0, :, 0, 0].tolist() == [[0, 0]] * 4 + [[1, 1]] * 4
    assert out[:, 1, :, 0, 0].tolist() == 2 * [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_one_crop_is_the_same_of_all_tensors_and_in_all_processes():
    x = positions(2, 2, 9, 7)
    places = set()
    for step in range(40):
        (a, b), scale = random_pieces((x, 2 * x), 4, False, draws(step))
        assert scale == 1
        assert a.shape == (2, 4, 2, 4, 4)
        assert torch.equal(b, 2 * a)
        (other,), _ = random_pieces((x[1:],), 4, False, draws(step, first=1, count=1))
        assert torch.equal(other, a[1:])
        places.add(tuple(a[0, 2:, 0, 0, 0].tolist()))
    rows, columns = zip(*places, strict=True)
    assert (min(rows), max(rows), min(columns), max(columns)) == (0, 5, 0, 3)


def test_both_scales_occur_with_as_many_values_in_all():
    x = positions(2, 8, 9, 8)
    shapes = {}
    for step in range(20):
        (piece,), scale = random_pieces((x,), 4, True, draws(step))
        shapes.setdefault(scale, set()).add(tuple(piece.shape))
    assert shapes == {1: {(8, 4, 8, 4, 4)}, 2: {(8, 4, 2, 8, 8)}}


def test_clips_that_cannot_be_cut_are_refused_whichever_scale_is_drawn():
    for step in range(6):
        with pytest.raises(UserError, match=r"latents of 7x9 are too small .* 8x8; train"):
            random_pieces((positions(2, 8, 7, 9),), 4, True, draws(step))
        with pytest.raises(UserError, match=r"6 frames do not divide; set data\.num_frames"):
            random_pieces((positions(2, 6, 8, 8),), 4, True, draws(step))
