"""What the C library does with memory that tensors free."""

import ctypes
from collections.abc import Callable

# mallopt's parameters (glibc's malloc.h), and the largest allocation that is kept.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_KEPT = 2**27


def keep_freed_memory() -> None:
    """Have glibc keep freed memory for the next tensors; elsewhere, nothing.

    By default it returns every tensor of some megabytes to the system, and the system clears and
    maps the pages of the next one: a tenth to a fifth of a transformer's forward on a CPU.
    """
    mallopt = _glibc("mallopt")
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)
        mallopt(M_TRIM_THRESHOLD, -1)


def return_freed_memory() -> None:
    """Give what is kept back to the system, as before something is measured or starts anew."""
    malloc_trim = _glibc("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def _glibc(function: str) -> Callable[..., int] | None:
    """The C library's function; None for musl, macOS and Windows, which do not have it."""
    try:
        return getattr(ctypes.CDLL(None), function)
    except (AttributeError, OSError, TypeError):
        return None
