"""Names in configs -> classes, and the strict builder: a key that nothing takes is an error, and so
is a value of another kind than the constructor's annotation says."""

import difflib
import inspect
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import is_dataclass
from typing import Any, Generic, TypeVar, get_args

from diffusion.utils.errors import ConfigError, UserError, on_one_line
from diffusion.utils.kinds import (
    described,
    hint_of,
    is_list,
    is_mapping,
    is_plain,
    item_hints,
    members,
)

T = TypeVar("T")


def nearest(name: str, valid: Iterable[str]) -> str:
    """'did you mean ...' for a misspelt name, else the list of what is valid."""
    valid = sorted(valid)
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"valid are: {', '.join(valid)}"


def check_keys(options: Mapping[str, Any], valid: Iterable[str], where: str) -> None:
    """Raise a ConfigError that names the first key of `options` which is not in `valid`."""
    if not isinstance(options, Mapping):
        raise ConfigError(f"{where} is {options!r}, but must be a dict of options")
    valid = list(valid)
    for key in options:
        if key not in valid:
            raise ConfigError(f"unknown key {key!r} in {where}; {nearest(key, valid)}")


def keyword_parameters(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Named parameters of a constructor or function, without self, *args and **kwargs."""
    parameters = inspect.signature(target, eval_str=True).parameters.values()
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {p.name: p for p in parameters if p.kind not in variadic}


class Registry(Generic[T]):
    """What a config's `type` may name, e.g. Registry("model", [VideoDiT, VideoVAE]).

    aliases: further names, for classes that are better known by another one.
    """

    def __init__(
        self, kind: str, classes: Iterable[type[T]], aliases: Mapping[str, type[T]] | None = None
    ):
        self.kind = kind
        self.classes = {cls.__name__: cls for cls in classes} | dict(aliases or {})

    def require(self, name: str, where: str) -> type[T]:
        """The class of that name; `where` the config names it, for errors."""
        if name not in self.classes:
            raise ConfigError(
                f"unknown {self.kind} {name!r} in {where}; {nearest(str(name), self.classes)}"
            )
        return self.classes[name]


def check_options(
    target: Callable[..., Any], options: Mapping[str, Any], where: str, given: Iterable[str] = ()
) -> None:
    """Raise a ConfigError if `target` does not take `options`, or needs more than these.

    given: names of the arguments that do not come from the config.
    """
    read_options(target, options, where, given)


def read_options(
    target: Callable[..., Any], options: Mapping[str, Any], where: str, given: Iterable[str] = ()
) -> dict[str, Any]:
    """`options` as arguments of `target`: each of the kind that its annotation asks for.

    Where that is a dataclass, it is made of a dict, so that its own checks are among these.
    """
    parameters = keyword_parameters(target)
    given = set(given)
    check_keys(options, parameters.keys() - given, where)
    required = {n for n, p in parameters.items() if p.default is inspect.Parameter.empty}
    missing = sorted(required - options.keys() - given)
    if missing:
        raise ConfigError(f"{where} lacks the key {missing[0]!r}")
    return {
        name: read_value(value, hint_of(parameters[name]), f"{where}.{name}")
        for name, value in options.items()
    }


def read_value(value: Any, hint: Any, where: str) -> Any:
    """`value`, with dataclasses in place of the dicts that stand for them.

    Raises a ConfigError that says what `where` must be unless the value is of the hint's kind.
    """
    if isinstance(value, Mapping):
        fitting = [member for member in members(hint) if is_mapping(member) or is_dataclass(member)]
    elif isinstance(value, list | tuple):
        fitting = [member for member in members(hint) if is_list(member)]
    else:
        fitting = []
    if any(is_plain(value, member) for member in members(hint)):
        return value
    for member in fitting:
        try:
            return _read_parts(value, member, where)
        except ConfigError:
            if len(fitting) == 1:  # what is wrong with the part says more
                raise
    raise ConfigError(f"{where}={_short(value)} must be {described(hint)}")


def _read_parts(value: Any, hint: Any, where: str) -> Any:
    """Of a dict or list, for a hint of a dict, list or dataclass."""
    if is_dataclass(hint):
        return call_with(hint, value, where)
    if is_mapping(hint):
        item = (get_args(hint) or (Any, Any))[1]
        return {key: read_value(part, item, f"{where}.{key}") for key, part in value.items()}
    hints = item_hints(hint, len(value))
    if hints is None:
        raise ConfigError(f"{where}={_short(value)} must be {described(hint)}")
    parts = [
        read_value(part, item, f"{where}[{i}]")
        for i, (part, item) in enumerate(zip(value, hints, strict=True))
    ]
    return type(value)(parts)


def _short(value: Any) -> str:
    """One line, whatever the value."""
    text = reprlib.Repr()
    text.maxstring = text.maxother = 100
    return on_one_line(text.repr(value))


def call_with(
    target: Callable[..., T], options: Mapping[str, Any], where: str, **runtime: Any
) -> T:
    """target(**options, **runtime); `where` is the options' path in the config, for errors.

    `runtime` are the arguments that configs cannot hold (modules, devices).
    """
    arguments = read_options(target, options, where, runtime)
    try:
        return target(**arguments, **runtime)
    except (TypeError, ValueError) as error:  # of values: the keys are right
        if isinstance(error, UserError) and not isinstance(error, ConfigError):
            raise  # of a file or folder, which it names
        raise ConfigError(f"{where}: {error}") from error


def split_type(
    registry: Registry[T], options: Mapping[str, Any], where: str
) -> tuple[type[T], dict[str, Any]]:
    """The class that `options["type"]` names, and the other keys."""
    if not isinstance(options, Mapping) or "type" not in options:
        raise ConfigError(f"{where} lacks the key 'type'; {nearest('', registry.classes)}")
    options = dict(options)
    return registry.require(options.pop("type"), where), options


def build(registry: Registry[T], options: Mapping[str, Any], where: str, **runtime: Any) -> T:
    """Build the class that `options["type"]` names from the other keys of `options`."""
    target, options = split_type(registry, options, where)
    return call_with(target, options, where, **runtime)
