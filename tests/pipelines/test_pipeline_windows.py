import golden_data
import pytest
import torch
from golden_data import to_frames, to_video
from golden_dit import build_dit

from diffusion.pipelines.windows import (
    Spans,
    Windows,
    apply_in_windows,
    blended_spans,
    published_tiles,
    published_windows,
)
from diffusion.utils.errors import ConfigError

LENGTHS = [1, 7, 8, 9, 12, 13, 16, 25, 40, 101]
CUTS = {
    "blended": lambda length: blended_spans(length, 8, 3),
    "no overlap": lambda length: blended_spans(length, 8, 0),
    "aligned": lambda length: blended_spans(length, 8, 2, multiple=2),
    "mostly overlap": lambda length: blended_spans(length, 8, 7),
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


@pytest.mark.parametrize("name", golden_data.cases("window_blend"))
def test_published_blending(name):
    meta, t = golden_data.load(name)
    windows = Windows(
        published_windows(meta["frames"], meta["lats_per_vid"]),
        blended_spans(3, 3, 0),
        blended_spans(3, 3, 0),
    )
    outputs = iter(t["window_outputs"])
    out = apply_in_windows(
        lambda _, origin: to_video(next(outputs), meta["lats_per_vid"]),
        windows,
        torch.zeros(1, 4, meta["frames"], 3, 3),
    )
    assert golden_data.relative_error(to_frames(out)[:, :4], t["out"]) <= 1e-6


@pytest.mark.parametrize(
    "name", golden_data.cases("dit_temporal_windows") + golden_data.cases("dit_spatial_tiles")
)
@torch.no_grad()
def test_the_dit_in_published_windows_and_tiles(name, golden_frequencies):
    meta, t = golden_data.load(name)
    config, model = meta["config"], build_dit(meta)
    x_t, condition = golden_data.split_inputs(t["x"], len(t["x"]))
    _, _, frames, height, width = x_t.shape
    windows = Windows(
        published_windows(frames, config["lats_per_vid"]),
        published_tiles(height, config["input_size"]),
        published_tiles(width, config["input_size"]),
    )
    # the published model gives every window positions from zero, so the origin goes unused
    out = apply_in_windows(
        lambda x, c, origin: model(x, t["timestep"][:1], c), windows, x_t, condition
    )
    channels = t["out"].shape[1]
    assert golden_data.relative_error(to_frames(out)[:, :channels], t["out"]) <= 1e-5


def test_a_pointwise_network_does_not_notice_windows():
    x, condition = torch.randn(2, 4, 11, 9, 14), torch.randn(2, 3, 11, 9, 14)
    windows = Windows(blended_spans(11, 4, 2), blended_spans(9, 6, 2), blended_spans(14, 6, 1))

    def network(x, condition, origin):
        return torch.cat([2 * x, condition - 1], dim=1)

    out = apply_in_windows(network, windows, x, condition)
    torch.testing.assert_close(out, network(x, condition, None))


def test_windows_know_their_origin():
    positions = torch.stack(torch.meshgrid(*(torch.arange(n) for n in (9, 8, 12)), indexing="ij"))
    windows = Windows(blended_spans(9, 4, 2), blended_spans(8, 8, 2), blended_spans(12, 6, 2))
    origins = []

    def network(x, nothing, origin):
        assert nothing is None
        assert x[0, :, 0, 0, 0].tolist() == list(origin)
        origins.append(origin)
        return x.float()

    out = apply_in_windows(network, windows, positions[None], None)
    assert len(set(origins)) == len(origins) == 4 * 3
    torch.testing.assert_close(out, positions[None].float())


def test_a_clip_shorter_than_the_window_is_one_window():
    windows = Windows(*(blended_spans(n, 8, 4) for n in (3, 8, 5)))
    x = torch.randn(1, 4, 3, 8, 5)
    calls = []
    out = apply_in_windows(lambda x, origin: calls.append(x.shape) or x, windows, x)
    assert calls == [x.shape]
    assert out is x


def test_blending_keeps_the_networks_precision():
    windows = Windows(*(blended_spans(n, 4, 2) for n in (7, 7, 7)))
    out = apply_in_windows(lambda x, origin: x.bfloat16(), windows, torch.randn(1, 2, 7, 7, 7))
    assert out.dtype == torch.bfloat16
