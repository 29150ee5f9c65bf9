import golden_data
import pytest

from diffusion.training.learning_rate import BatchScaling, LearningRate


def factors(schedule, warmup_steps=10, max_steps=110):
    rate = LearningRate(1.0, schedule=schedule, warmup_steps=warmup_steps)
    return [rate.at(step, max_steps) for step in range(max_steps + 1)]


def test_warm_up_begins_above_zero():
    for schedule in ("constant", "cosine"):
        assert factors(schedule)[:11] == pytest.approx([i / 10 for i in range(1, 11)] + [1])
        assert factors(schedule, warmup_steps=0)[0] == 1


def test_constant_is_constant():
    assert set(factors("constant")[10:]) == {1.0}


def test_cosine_falls_to_a_fiftieth():
    curve = factors("cosine")
    assert curve[60] == pytest.approx(0.51)  # half-way
    assert curve[110] == pytest.approx(0.02)
    assert curve[10:] == sorted(curve[10:], reverse=True)


def test_scaling_to_the_batch():
    # one GPU with 4 clips at the published 2e-5
    assert BatchScaling()(2e-5, 4) == pytest.approx(2.5e-6)
    assert BatchScaling()(2e-5, 32) == pytest.approx(7.07e-6, rel=1e-3)
    for row in golden_data.TABLES["auto_lr"]:
        got = BatchScaling(row["rule"])(2e-5, row["effective_batch"])
        assert got == pytest.approx(row["lr_from_2e-5"])
    linear = LearningRate(1.0, auto=BatchScaling("linear", base_batch=32))
    assert linear.for_batch(64) == LearningRate(2.0)
    assert linear.for_batch(64).for_batch(64) == LearningRate(2.0)


def test_a_cosine_may_have_another_length_than_the_training():
    longer = LearningRate(0.5, warmup_steps=10, schedule_steps=110)
    assert [longer.at(step, 400) for step in range(111)] == [x / 2 for x in factors("cosine")]
    assert longer.at(300, 400) == longer.at(110, 400)
