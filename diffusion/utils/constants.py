"""Tensors that are the same at every call: made, and sent to their device, once."""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, TypeVar, cast

from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

Maker = TypeVar("Maker", bound=Callable[..., Tensor])


def constant(maxsize: int) -> Callable[[Maker], Maker]:
    """For a function that makes a constant out of what can be hashed: keep the last results.

    Within a mode such as FakeTensorMode, whose tensors are of no use outside, none is kept or taken
    from what is.
    """

    def keeping(make: Maker) -> Maker:
        kept = lru_cache(maxsize)(make)

        @wraps(make)
        def get(*args: Any, **kwargs: Any) -> Tensor:
            outside = _get_current_dispatch_mode() is None
            return (kept if outside else make)(*args, **kwargs)

        return cast(Maker, get)

    return keeping
