import sys

import pytest
import torch

from diffusion.models import grid_attention
from diffusion.models.grid_attention import (
    ALL,
    Grid,
    GridAttention,
    attention_backend,
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


@pytest.mark.parametrize("cells", [1, 5])
@pytest.mark.parametrize("scores", [1, 200, 2**21])
def test_products_and_softmax_are_attention(cells, scores, monkeypatch):
    monkeypatch.setattr(grid_attention, "SCORES", scores)
    q, k, v = torch.randn(3, cells, 2, 8, 12)
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(attention_backend("matmul")(q, k, v), wanted)
    halves = [x.bfloat16() for x in (q, k, v)]
    auto = attention_backend("auto")(*halves)
    assert torch.equal(auto, attention_backend("matmul")(*halves))
    assert (auto - wanted).std() < 0.01 * wanted.std()


def test_where_products_do_not_pay(monkeypatch):
    def never(q, k, v):
        raise AssertionError

    monkeypatch.setattr(grid_attention, "_matmul_attention", never)
    auto, q = attention_backend("auto"), torch.randn(1, 1, 4, 8)
    assert torch.equal(auto(q, q, q), attention_backend("sdpa")(q, q, q))  # float32
    trained = q.bfloat16().requires_grad_()  # the backward pass would keep the scores
    auto(trained, trained, trained)


def test_a_missing_xformers_names_the_install_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "xformers", None)
    monkeypatch.setitem(sys.modules, "xformers.ops", None)
    with pytest.raises(ConfigError, match="pip install xformers"):
        GridAttention(16, 2, backend="xformers")


def test_an_unknown_backend_is_refused():
    with pytest.raises(ConfigError, match="flash"):
        GridAttention(16, 2, backend="flash")
