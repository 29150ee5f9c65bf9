"""Which numbers an option may be: said in its annotation, or checked by the dataclass it is in.

`registry` checks what a config holds by the annotations, before anything is built.
"""

import math
from dataclasses import dataclass
from typing import Annotated, TypeAlias

from diffusion.utils.errors import ConfigError


@dataclass(frozen=True)
class Range:
    """From `least` to `most`. above, below: without these two themselves."""

    least: float = -math.inf
    most: float = math.inf
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.least if self.above else value >= self.least
        below = value < self.most if self.below else value <= self.most
        return above and below and not math.isinf(value)

    def __str__(self) -> str:
        if self.most == math.inf:
            return f"above {self.least:g}" if self.above else f"of at least {self.least:g}"
        start, end = "above" if self.above else "from", "below" if self.below else "to"
        return f"{start} {self.least:g} {end} {self.most:g}"


Count: TypeAlias = Annotated[int, Range(1)]
Natural: TypeAlias = Annotated[int, Range(0)]
Positive: TypeAlias = Annotated[float, Range(0, above=True)]
Weight: TypeAlias = Annotated[float, Range(0)]
Share: TypeAlias = Annotated[float, Range(0, 1)]
Decay: TypeAlias = Annotated[float, Range(0, 1, below=True)]


def check_least(options: object, **least: float) -> None:
    """Refuse attributes below the given values; None is any."""
    for name, bound in least.items():
        value = getattr(options, name)
        if value is not None and value < bound:
            raise ConfigError(f"{name} is {value}, but must be at least {bound}")


def check_positive(options: object, *names: str) -> None:
    for name in names:
        if not getattr(options, name) > 0:
            raise ConfigError(f"{name} is {getattr(options, name)}, but must be positive")
