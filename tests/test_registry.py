from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from diffusion.registry import Registry, build, call_with, check_options, read_value
from diffusion.utils.errors import ConfigError, UserError


class Square:
    def __init__(self, *, side: float, colour: str = "red"):
        if side <= 0:
            raise ValueError(f"side {side} must be positive")
        self.side, self.colour = side, colour


class Circle:
    def __init__(self, *, radius: float, pen=None):
        self.radius, self.pen = radius, pen


SHAPES = Registry("shape", [Square, Circle])


def test_builds_what_the_type_names_and_leaves_the_options_alone():
    options = {"type": "Square", "side": 2.0}
    shape = build(SHAPES, options, "shape")
    assert isinstance(shape, Square)
    assert (shape.side, shape.colour) == (2.0, "red")
    assert options == {"type": "Square", "side": 2.0}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"type": "Sqare", "side": 1}, r"unknown shape 'Sqare' in it; did you mean 'Square'\?"),
        ({"type": "Xyz"}, r"unknown shape 'Xyz' in it; valid are: Circle, Square"),
        ({"side": 1}, r"it lacks the key 'type'; valid are: Circle, Square"),
        (7, r"it lacks the key 'type'"),
        ({"type": "Square", "sied": 1}, r"unknown key 'sied' in it; did you mean 'side'\?"),
        ({"type": "Square", "q": 1}, r"unknown key 'q' in it; valid are: colour, side"),
        ({"type": "Square"}, r"it lacks the key 'side'"),
        ({"type": "Square", "side": -1}, r"it: side -1 must be positive"),
        ({"type": "Square", "side": "long"}, r"^it.side='long' must be a number$"),
        ({"type": "Square", "side": None}, r"^it.side=None must be a number$"),
        ({"type": "Square", "side": True}, r"^it.side=True must be a number$"),
    ],
)
def test_mistakes_are_named(options, said):
    with pytest.raises(ConfigError, match=said):
        build(SHAPES, options, "it")


def test_what_the_code_gives_the_config_cannot():
    pen = object()
    assert build(SHAPES, {"type": "Circle", "radius": 1}, "it", pen=pen).pen is pen
    with pytest.raises(ConfigError, match="unknown key 'pen'"):
        build(SHAPES, {"type": "Circle", "radius": 1, "pen": 3}, "it", pen=pen)


def test_options_can_be_checked_without_building():
    check_options(Circle, {}, "it", given=["radius"])
    with pytest.raises(ConfigError, match="'radius'"):
        check_options(Circle, {}, "it")
    with pytest.raises(ConfigError, match="it is 3, but must be a dict"):
        check_options(Circle, 3, "it")


def test_errors_about_files_stay_as_they_are():
    def read(path: str):
        raise UserError(f"{path}: no such file")

    with pytest.raises(UserError, match=r"^x: no such file$"):
        call_with(read, {"path": "x"}, "it")


@dataclass(frozen=True)
class Frame:
    """A dataclass among the options of another."""

    width: float = 1.0
    colours: Sequence[str] = ("red",)

    def __post_init__(self):
        if self.width <= 0:
            raise ValueError(f"width {self.width} must be positive")


@dataclass(frozen=True)
class Picture:
    size: int | Sequence[int]
    frame: Frame = Frame()
    back: Frame | None = None
    notes: Mapping[str, int] | None = None


def test_dataclasses_are_given_as_dicts():
    options = {"size": [1, 2], "frame": {"width": 2}, "back": {}, "notes": {"a": 1}}
    picture = call_with(Picture, options, "it")
    assert picture == Picture([1, 2], Frame(2), Frame(), {"a": 1})
    assert options["frame"] == {"width": 2}
    assert call_with(Picture, {"size": 3, "frame": Frame(4), "back": None}, "it").frame == Frame(4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"frame": {"widht": 1}}, "unknown key 'widht' in it.frame; did you mean 'width'?"),
        ({"frame": {"width": "a"}}, "it.frame.width='a' must be a number"),
        ({"frame": {"width": 0}}, "it.frame: width 0 must be positive"),
        ({"frame": {"colours": "red"}}, "it.frame.colours='red' must be a list of texts"),
        ({"frame": {"colours": ["red", 1]}}, "it.frame.colours[1]=1 must be text"),
        ({"frame": None}, "it.frame=None must be a dict of options"),
        ({"frame": ["a"]}, "it.frame=['a'] must be a dict of options"),
        ({"back": {"width": None}}, "it.back.width=None must be a number"),
        ({"back": 1}, "it.back=1 must be a dict of options or None"),
        ({"notes": {"a": "b"}}, "it.notes.a='b' must be a whole number"),
        ({"size": [1, 2.5]}, "it.size[1]=2.5 must be a whole number"),
        ({"size": 2.5}, "it.size=2.5 must be a whole number or a list of whole numbers"),
        ({"size": {"a": 1}}, "it.size={'a': 1} must be a whole number or a list of whole numbers"),
        ({"size": "a\nb"}, "it.size='a\\nb' must be a whole number or a list of whole numbers"),
    ],
)
def test_kinds_are_checked_all_the_way_down(options, said):
    """In one line, and whether or not anything is built."""
    options = {"size": 1} | options
    for take in (check_options, call_with):
        with pytest.raises(ConfigError) as caught:
            take(Picture, options, "it")
        assert str(caught.value) == said


def test_long_values_are_cut_short():
    with pytest.raises(ConfigError) as caught:
        check_options(Picture, {"size": "long" * 1000}, "it")
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("hint", "right", "wrong", "said"),
    [
        (tuple[float, float], [0.9, 1], [0.9], r"it=\[0.9\] must be a list of 2 numbers"),
        (tuple[float, float], (0.9, 1), [0.9, "b"], r"it\[1\]='b' must be a number"),
        (
            int | Sequence[int] | Sequence[Sequence[int]],
            [[1, 2], [3, 4]],
            [1, [2]],
            "must be a whole number, a list of whole numbers or a list of lists of whole numbers",
        ),
        (Mapping[str, Any], {"a": object}, [], "must be a dict of options"),
    ],
)
def test_values_alone(hint, right, wrong, said):
    assert read_value(right, hint, "it") == right
    with pytest.raises(ConfigError, match=said):
        read_value(wrong, hint, "it")
