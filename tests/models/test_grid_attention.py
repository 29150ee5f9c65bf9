import sys

import pytest
import torch

from diffusion.models.grid_attention import (
    ALL,
    Grid,
    GridAttention,
    merge_grid,
    parse_grid,
    split_grid,
)
from diffusion.utils.errors import ConfigError, UserError

SIZE = (4, 8, 12)
GRIDS = [
    Grid(),
    Grid(1, 4),
    Grid(4, 1),
    Grid(2, 2),
    Grid(time=ALL),
    Grid(space=ALL),
    Grid(ALL, 2),
    Grid(-2, -4),
]


@pytest.mark.parametrize("grid", GRIDS)
def test_merge_inverts_split(grid):
    x = torch.randn(2, *SIZE, 6)
    assert torch.equal(merge_grid(split_grid(x, grid), grid, SIZE), x)


def test_cells_are_contiguous_and_ordered_video_time_row_column():
    frame, row, column = torch.meshgrid(*(torch.arange(n) for n in SIZE), indexing="ij")
    x = torch.stack([frame, row, column], dim=-1).expand(2, *SIZE, 3)
    cells = split_grid(x, Grid(2, 2)).unflatten(0, (2, 2, 2, 2))  # video, time, row, column
    second_time, third_cell = cells[0, 1, 0, 0], cells[1, 0, 1, 0]
    assert second_time[:, 0].unique().tolist() == [2, 3]
    assert third_cell[:, 1].unique().tolist() == [4, 5, 6, 7]
    assert third_cell[:, 2].unique().tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("grid", "shape"),
    [(Grid(), (2, 384)), (Grid(time=ALL), (8, 96)), (Grid(space=ALL), (192, 4))],
)
def test_full_spatial_and_temporal_sequences(grid, shape):
    assert split_grid(torch.zeros(2, *SIZE, 5), grid).shape == (*shape, 5)


@pytest.mark.parametrize(
    ("entry", "grid"),
    [
        (None, Grid()),
        ([1, 4], Grid(1, 4)),
        ([-2, -8], Grid(-2, -8)),
        ("spatial", Grid(time=ALL)),
        ("temporal", Grid(space=ALL)),
    ],
)
def test_grids_from_config_entries(entry, grid):
    assert parse_grid(entry) == grid


@pytest.mark.parametrize("entry", ["spacial", [1], [0, 4], [1, 2, 3], [1.5, 2]])
def test_wrong_config_entries_are_refused(entry):
    with pytest.raises(ConfigError, match="grid"):
        parse_grid(entry)


def test_a_size_that_does_not_divide_names_the_remedy():
    with pytest.raises(UserError, match=r"6 frames.* cells of 4 .*multiple of 4"):
        split_grid(torch.zeros(1, 6, 8, 8, 2), Grid(-4, 1))
    with pytest.raises(UserError, match=r"6 frames.* 4 cells.*multiple of 4"):
        split_grid(torch.zeros(1, 6, 8, 8, 2), Grid(4, 1))


@pytest.mark.parametrize("grid", GRIDS)
def test_a_token_attends_within_its_cell_only(grid):
    attention = GridAttention(16, 2)
    x = torch.randn(1, *SIZE, 16)
    changed = x.clone()
    changed[0, 0, 0, 0] += 1
    differs = (attention(x, grid) - attention(changed, grid)).abs().amax(-1, keepdim=True) > 1e-6
    same_cell = split_grid(differs, grid)[:, :, 0]
    assert same_cell[0].all()
    assert not same_cell[1:].any()


def test_fp32_attention_holds_under_autocast():
    attention = GridAttention(16, 2, fp32_attention=True)
    seen = []
    sdpa = attention.attend
    attention.attend = lambda q, k, v: (seen.append(q.dtype), sdpa(q, k, v))[1]
    x = torch.randn(1, 2, 4, 4, 16)
    with torch.autocast("cpu", torch.bfloat16):
        out = attention(x, Grid())
    assert seen == [torch.float32]
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), attention(x, Grid()), atol=0.02, rtol=0.05)


def test_half_precision_weights_attend_in_half_precision():
    attention = GridAttention(16, 2).bfloat16()
    assert attention(torch.randn(1, 2, 4, 4, 16).bfloat16(), Grid()).dtype == torch.bfloat16


def test_a_missing_xformers_names_the_install_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "xformers", None)
    monkeypatch.setitem(sys.modules, "xformers.ops", None)
    with pytest.raises(ConfigError, match="pip install xformers"):
        GridAttention(16, 2, backend="xformers")


def test_an_unknown_backend_is_refused():
    with pytest.raises(ConfigError, match="flash"):
        GridAttention(16, 2, backend="flash")
