import golden_data
import pytest
import torch
from golden_data import to_frames, to_video
from golden_dit import build_dit

from diffusion.pipelines.blending import (
    Spans,
    Tiles,
    apply_in_tiles,
    blended_spans,
    chunk_spans,
    published_tiles,
    published_windows,
    whole_span,
)
from diffusion.pipelines.streams import Segment, WindowedStream
from diffusion.utils.errors import ConfigError

LENGTHS = [1, 7, 8, 9, 12, 13, 16, 25, 40, 101]
CUTS = {
    "blended": lambda length: blended_spans(length, 8, 3),
    "no overlap": lambda length: blended_spans(length, 8, 0),
    "aligned": lambda length: blended_spans(length, 8, 2, multiple=2),
    "mostly overlap": lambda length: blended_spans(length, 8, 7),
    "moved back": lambda length: chunk_spans(length, 8, 5),
    "published windows": lambda length: published_windows(length, 8),
    "published tiles": lambda length: published_tiles(length, 8),
}


def totals(spans: Spans, length: int) -> torch.Tensor:
    """(length,): the sum of the weights that fall on each position."""
    total = torch.zeros(length)
    for span, weights in zip(spans.slices, spans.weights, strict=True):
        total[span] += weights
    return total


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("length", LENGTHS)
def test_spans_cover_the_axis_and_their_weights_sum_to_one(cut, length):
    spans = CUTS[cut](length)
    assert spans.starts[0] == 0
    assert spans.starts[-1] + spans.window == length
    torch.testing.assert_close(totals(spans, length), torch.ones(length))


@pytest.mark.parametrize("length", [9, 13, 16, 40, 101])
def test_blended_weights_are_strictly_between_zero_and_one_where_spans_meet(length):
    spans = blended_spans(length, 8, 3)
    count = torch.zeros(length)
    for span in spans.slices:
        count[span] += 1
    for span, weights in zip(spans.slices, spans.weights, strict=True):
        shared = count[span] > 1
        assert ((weights[shared] > 0.05) & (weights[shared] < 0.95)).all()
        assert torch.equal(weights[~shared], torch.ones(int((~shared).sum())))


@pytest.mark.parametrize("multiple", [1, 2, 3])
@pytest.mark.parametrize("length", [9, 13, 16, 34, 35, 40, 101])
def test_blended_spans_overlap_enough_and_are_no_more_than_needed(length, multiple):
    spans = blended_spans(length, 8, 2, multiple)
    gaps = torch.tensor(spans.starts).diff()
    assert (gaps > 0).all()
    assert (gaps <= 6).all()
    assert all(start % multiple == 0 for start in spans.starts[:-1])
    assert len(gaps) == -(-(length - 8) // 6)


def test_an_overlap_that_leaves_no_step_is_refused():
    with pytest.raises(ConfigError, match="windows of 8 cannot overlap by 8; use 0 to 7"):
        blended_spans(20, 8, 8)
    with pytest.raises(ConfigError, match="use 0 to 4"):
        blended_spans(20, 8, 5, multiple=4)


@pytest.mark.parametrize("row", golden_data.TABLES["spatial_tile_starts"])
def test_published_tile_starts(row):
    assert list(published_tiles(row["size"], row["input_size"]).starts) == row["starts"]


@pytest.mark.parametrize("row", golden_data.TABLES["temporal_window_starts"])
def test_published_window_starts(row):
    assert list(published_windows(row["frames"], row["lats_per_vid"]).starts) == row["starts"]


@pytest.mark.parametrize("factor", [8, 32])
@pytest.mark.parametrize("length", [7, 13, 40])
def test_a_finer_axis_is_cut_alike(factor, length):
    coarse = blended_spans(length, 8, 3)
    fine = coarse.scaled(factor)
    assert fine.starts == tuple(factor * start for start in coarse.starts)
    assert fine.length == factor * length
    torch.testing.assert_close(totals(fine, factor * length), torch.ones(factor * length))


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("length", LENGTHS)
def test_segments_are_what_lies_between_two_starts(cut, length):
    spans = CUTS[cut](length)
    assert [s for start, stop in spans.segments for s in range(start, stop)] == list(range(length))
    for k, start in enumerate(spans.starts):
        first = spans.first_before(k)
        shares = [s + spans.window > start for s in spans.starts[: k + 1]]
        assert shares == [i >= first for i in range(k + 1)]


@torch.no_grad()
def in_windows(net, spans: Spans, tiles: Tiles, *inputs: torch.Tensor) -> torch.Tensor:
    """`net` on a clip that is cut in time and space, as the pipeline does it in every step."""
    stream = WindowedStream[Segment](lambda units: apply_in_tiles(net, units, tiles), spans)
    segments = (
        Segment(start, stop, tuple(x[:, :, start:stop] for x in inputs))
        for start, stop in spans.segments
    )
    return torch.cat([out for s in segments for _, out in stream.push(s)], dim=2)


@pytest.mark.parametrize("name", golden_data.cases("window_blend"))
def test_published_blending(name):
    meta, t = golden_data.load(name)
    outputs = iter(t["window_outputs"])
    out = in_windows(
        lambda _: to_video(next(outputs), meta["lats_per_vid"]),
        published_windows(meta["frames"], meta["lats_per_vid"]),
        Tiles(whole_span(3), whole_span(3)),
        torch.zeros(1, 4, meta["frames"], 3, 3),
    )
    assert golden_data.relative_error(to_frames(out)[:, :4], t["out"]) <= 1e-6


@pytest.mark.parametrize(
    "name", golden_data.cases("dit_temporal_windows") + golden_data.cases("dit_spatial_tiles")
)
def test_the_dit_in_published_windows_and_tiles(name, golden_frequencies):
    meta, t = golden_data.load(name)
    config, model = meta["config"], build_dit(meta)
    x_t, condition = golden_data.split_inputs(t["x"], len(t["x"]))
    _, _, frames, height, width = x_t.shape
    tiles = Tiles(*(published_tiles(side, config["input_size"]) for side in (height, width)))
    # the published model gives every window and tile positions from zero
    out = in_windows(
        lambda x, c: model(x, t["timestep"][:1], c),
        published_windows(frames, config["lats_per_vid"]),
        tiles,
        *(x_t, condition),
    )
    channels = t["out"].shape[1]
    assert golden_data.relative_error(to_frames(out)[:, :channels], t["out"]) <= 1e-5


def test_a_pointwise_network_does_not_notice_windows_and_tiles():
    x, condition = torch.randn(2, 4, 11, 9, 14), torch.randn(2, 3, 11, 9, 14)
    tiles = Tiles(blended_spans(9, 6, 2), blended_spans(14, 6, 1))

    def network(x, condition):
        return torch.cat([2 * x, condition - 1], dim=1)

    out = in_windows(network, blended_spans(11, 4, 2), tiles, x, condition)
    torch.testing.assert_close(out, network(x, condition))


def test_tiles_of_a_network_that_changes_the_size():
    """Enlarging by repetition is pointwise too, so that tiles must not show."""
    x = torch.randn(1, 2, 3, 10, 7)
    tiles = Tiles(blended_spans(10, 4, 2), blended_spans(7, 4, 1))

    def enlarge(x):
        return x.repeat_interleave(8, -1).repeat_interleave(8, -2)

    (out,) = apply_in_tiles(enlarge, [(x,)], tiles, tiles.scaled(8))
    torch.testing.assert_close(out, enlarge(x))


def test_one_window_and_one_tile_change_nothing():
    tiles = Tiles(blended_spans(8, 8, 4), blended_spans(5, 8, 4))
    x = torch.randn(1, 4, 3, 8, 5)
    calls = []
    out = in_windows(lambda x: calls.append(x.shape) or x, blended_spans(3, 8, 4), tiles, x)
    assert calls == [x.shape]
    assert torch.equal(out, x)


def test_blending_keeps_the_networks_precision():
    tiles = Tiles(blended_spans(7, 4, 2), blended_spans(7, 4, 2))
    (out,) = apply_in_tiles(lambda x: x.bfloat16(), [(torch.randn(1, 2, 7, 7, 7),)], tiles)
    assert out.dtype == torch.bfloat16
