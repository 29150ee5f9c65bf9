import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter
from pathlib import Path
from typing import Any, Literal, Optional

import pytest
from torch import Tensor

from diffusion.utils.kinds import described, hint_of, is_plain, item_hints
from diffusion.utils.ranges import Count, Decay, Natural, Positive, Share


@dataclass(frozen=True)
class Options:
    size: int = 1


@pytest.mark.parametrize(
    ("hint", "text"),
    [
        (int, "a whole number"),
        (int | None, "a whole number or None"),
        (Optional[bool], "True or False or None"),  # noqa: UP045 (both ways to write it)
        (Literal["a", "b", 1], "'a', 'b' or 1"),
        (Sequence[int], "a list of whole numbers"),
        (tuple[int, ...], "a list of whole numbers"),
        (list, "a list"),
        (Sequence[Sequence[float]] | float, "a list of lists of numbers or a number"),
        (tuple[float, float], "a list of 2 numbers"),
        (tuple[str, int | None], "a list of text and a whole number or None"),
        (Sequence[str | int], "a list of items that are text or a whole number"),
        (Sequence[bool], "a list of items that are True or False"),
        (Mapping[str, Any], "a dict of options"),
        (Options | None, "a dict of options or None"),
        (Path, "Path"),
        (Count | None, "a whole number of at least 1 or None"),
        (Positive, "a number above 0"),
        (Decay, "a number from 0 below 1"),
        (tuple[Natural, Natural], "a list of 2 whole numbers of at least 0"),
        (Sequence[Share], "a list of numbers from 0 to 1"),
    ],
)
def test_kinds_in_words(hint, text):
    assert described(hint) == text


@pytest.mark.parametrize(
    ("hint", "right", "wrong"),
    [
        (int, [0, -3], [1.0, True, "1", None]),
        (float, [1, 1.5], [True, "1", None]),
        (bool, [True, False], [0, 1, "True", None]),
        (str, ["", "a"], [1, b"a", None]),
        (Literal["a", 1], ["a", 1], ["b", True, 1.0]),
        (type(None), [None], [0, ""]),
        (Options, [Options()], [{"size": 1}, Options]),
        (Any, [1, None, []], []),
        (Tensor, [Tensor()], [1.0]),
        (Count, [1, 7], [0, -1, 1.0, True, None]),
        (Positive, [1, 1e-9], [0, -1.0, math.inf, math.nan, "1"]),
        (Decay, [0, 0.999], [1, -0.1, True]),
        (Share, [0, 1, 0.5], [-0.1, 1.1, math.nan]),
    ],
)
def test_plain_values(hint, right, wrong):
    assert all(is_plain(value, hint) for value in right)
    assert not any(is_plain(value, hint) for value in wrong)


@pytest.mark.parametrize("hint", [Sequence[str], Sequence, Iterable[str], list, Mapping, dict])
@pytest.mark.parametrize("value", ["text", [], {}])
def test_what_has_parts_is_never_plain(hint, value):
    assert not is_plain(value, hint)


def test_lists_of_a_fixed_and_of_any_length():
    assert item_hints(tuple[int, str], 2) == [int, str]
    assert item_hints(tuple[int, str], 3) is None
    assert item_hints(tuple[int, ...], 3) == item_hints(Sequence[int], 3) == [int, int, int]
    assert item_hints(list, 2) == [Any, Any]


def test_an_argument_without_annotation_is_of_its_defaults_kind():
    def parameter(default):
        return Parameter("p", Parameter.KEYWORD_ONLY, default=default)

    assert hint_of(parameter(1.0)) is float
    assert hint_of(parameter((1.0, 0.5))) == tuple[float, float]
    assert hint_of(parameter(None)) is Any
    assert hint_of(parameter(1.0).replace(annotation=int)) is int
