import pytest

from diffusion.registry import Registry, build, call_with, check_options
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
        ({"type": "Square", "side": "long"}, r"it: '<=' not supported"),
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
