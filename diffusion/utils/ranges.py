"""Checks of what frozen dataclasses of options hold."""

from diffusion.utils.errors import ConfigError


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
