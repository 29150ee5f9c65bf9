"""Pieces of encoded clips: random crops, and clips of two resolutions in one training."""

from collections.abc import Sequence

from einops import rearrange
from torch import Tensor

from diffusion.training.draws import Draws
from diffusion.utils.errors import UserError

SPLIT = 4  # a clip of twice the side becomes this many of fewer frames, with as many tokens in all


def random_pieces(
    tensors: Sequence[Tensor], side: int, multi_scale: bool, draws: Draws
) -> tuple[list[Tensor], int]:
    """The same random pieces of all `tensors`, (B, C_i, F, H, W) each, and their scale.

    One crop of side x side: (B, C_i, F, side, side) at scale 1. With `multi_scale` half of the
    steps take four such crops, (4 * B, C_i, F, side, side), and the other half one crop of twice
    the side at scale 2, its frames in four groups: (4 * B, C_i, F / 4, 2 * side, 2 * side).
    """
    num_frames, *size = tensors[0].shape[2:]
    largest = 2 * side if multi_scale else side
    if min(size) < largest:
        raise UserError(
            f"latents of {size[0]}x{size[1]} are too small for pieces of {largest}x{largest}; "
            "train on larger clips or lower train.stage.latent_crop"
        )
    if multi_scale and num_frames % SPLIT:
        raise UserError(
            f"multi_scale splits clips into {SPLIT}, and {num_frames} frames do not divide; set "
            f"data.num_frames to a multiple of {SPLIT}"
        )
    double = multi_scale and draws.shared_uniform() < 0.5
    if double:
        side, count = 2 * side, 1
    else:
        count = SPLIT if multi_scale else 1
    corners = [draws.shared_integers([length - side for length in size]) for _ in range(count)]
    pieces = [crops(x, side, corners) for x in tensors]
    return ([split_frames(x, SPLIT) for x in pieces], 2) if double else (pieces, 1)


def crops(x: Tensor, side: int, corners: Sequence[tuple[int, int]]) -> Tensor:
    """(B, C, F, H, W) -> (B * n, C, F, side, side): every clip at its n (row, column) corners."""
    return rearrange(
        [x[..., top : top + side, left : left + side] for top, left in corners],
        "n b c f h w -> (b n) c f h w",
    )


def split_frames(x: Tensor, groups: int) -> Tensor:
    """(B, C, F, H, W) -> (B * groups, C, F / groups, H, W): consecutive frames."""
    return rearrange(x, "b c (g f) h w -> (b g) c f h w", g=groups)
