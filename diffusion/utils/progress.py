"""Progress without knowing who watches: long loops are `track`ed, commands install a display."""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")
Display = Callable[[Iterable[T]], Iterator[T]]

_display: ContextVar[Display] = ContextVar("display", default=iter)


def track(items: Iterable[T]) -> Iterator[T]:
    """Iterate over `items`, telling the display, if one is installed."""
    return _display.get()(items)


@contextmanager
def displayed(display: Display) -> Generator[None]:
    """Within the block, tracked loops are iterated by `display`."""
    token = _display.set(display)
    try:
        yield
    finally:
        _display.reset(token)
