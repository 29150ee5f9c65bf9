import pytest
import torch

from diffusion.utils.spans import blend_weights, span_starts, span_weights

CASES = [(1, 8, 4), (8, 8, 4), (9, 8, 4), (13, 8, 4), (16, 8, 4), (7, 4, 0), (8, 4, 0), (21, 8, 7)]


def test_starts_step_by_window_minus_overlap_and_the_last_ends_at_the_end():
    assert span_starts(13, window=8, overlap=4) == [0, 4, 5]
    assert span_starts(16, window=8, overlap=4) == [0, 4, 8]
    assert span_starts(8, window=4, overlap=0) == [0, 4]
    assert span_starts(7, window=4, overlap=0) == [0, 3]


@pytest.mark.parametrize("length", [1, 5, 8])
def test_one_span_when_it_covers_everything(length):
    assert span_starts(length, window=8, overlap=4) == [0]
    assert torch.equal(span_weights([0], 8, length), torch.ones(1, length))


def test_ramps_are_linear_and_complementary():
    down = blend_weights(6, overlap_before=0, overlap_after=3)
    up = blend_weights(6, overlap_before=3, overlap_after=0)
    torch.testing.assert_close(down, torch.tensor([1, 1, 1, 0.75, 0.5, 0.25]))
    torch.testing.assert_close(down[3:] + up[:3], torch.ones(3))


@pytest.mark.parametrize(("length", "window", "overlap"), CASES)
def test_weights_cover_every_position_and_sum_to_one(length, window, overlap):
    starts = span_starts(length, window, overlap)
    weights = span_weights(starts, window, length)
    total = torch.zeros(length)
    count = torch.zeros(length)
    for start, span in zip(starts, weights, strict=True):
        total[start : start + len(span)] += span
        count[start : start + len(span)] += 1
    torch.testing.assert_close(total, torch.ones(length))
    assert count.min() >= 1
    assert weights.min() > 0
    for start, span in zip(starts, weights, strict=True):
        shared = count[start : start + len(span)] > 1
        assert (span[shared] < 1).all()
        assert (span[~shared] == 1).all()


@pytest.mark.parametrize("overlap", [-1, 8])
def test_an_overlap_that_does_not_advance_is_refused(overlap):
    with pytest.raises(AssertionError, match="overlap"):
        span_starts(16, window=8, overlap=overlap)
