"""What a value in a config may be, told by the annotation of the argument that it becomes."""

import types
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from inspect import Parameter
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from diffusion.utils.ranges import Range

LISTS = (list, tuple, Sequence, Collection, Iterable)

NAMES = {  # one, several
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("text", "texts"),
    bool: ("True or False", "items that are True or False"),
    types.NoneType: ("None", "items that are None"),
}


def hint_of(parameter: Parameter) -> Any:
    """Its annotation; without one, what its default is an example of."""
    if parameter.annotation is not Parameter.empty:
        return parameter.annotation
    return _example(parameter.default)


def _example(value: Any) -> Any:
    if isinstance(value, tuple):
        return types.GenericAlias(tuple, tuple(_example(item) for item in value))
    if isinstance(value, float):
        return float
    return Any


def members(hint: Any) -> tuple[Any, ...]:
    """Those of a union; any other hint is its own only member."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def is_list(hint: Any) -> bool:
    """Whether it is for lists and tuples, which are one kind here."""
    return (get_origin(hint) or hint) in LISTS


def is_mapping(hint: Any) -> bool:
    return (get_origin(hint) or hint) in (dict, Mapping)


def item_hints(hint: Any, count: int) -> list[Any] | None:
    """One for each item of a list; None if such a list cannot have `count` items."""
    args = get_args(hint) or (Any,)
    if _has_fixed_length(hint):
        return list(args) if len(args) == count else None
    return [args[0]] * count


def _has_fixed_length(hint: Any) -> bool:
    return get_origin(hint) is tuple and get_args(hint)[-1] is not Ellipsis


def is_plain(value: Any, hint: Any) -> bool:
    """Whether `value` is of a kind without parts. A whole number is a number; True is neither."""
    if get_origin(hint) is Annotated:
        kind, *notes = get_args(hint)
        ranges = [note for note in notes if isinstance(note, Range)]
        return is_plain(value, kind) and all(value in allowed for allowed in ranges)
    if hint is Any:
        return True
    if get_origin(hint) is Literal:
        return any(value == choice and type(value) is type(choice) for choice in get_args(hint))
    if is_list(hint) or is_mapping(hint) or not isinstance(hint, type):
        return False
    if isinstance(value, bool) and hint in (int, float):
        return False
    return isinstance(value, (int, float) if hint is float else hint)


def described(hint: Any) -> str:
    """'a whole number, a list of whole numbers or None'."""
    return _joined([_described(member) for member in members(hint)], "or")


def _described(hint: Any) -> str:
    args = get_args(hint)
    if get_origin(hint) is Annotated:
        return " ".join([described(args[0]), *map(str, args[1:])])
    if get_origin(hint) is Literal:
        return _joined([repr(choice) for choice in args], "or")
    if is_mapping(hint) or is_dataclass(hint):
        return "a dict of options"
    if not is_list(hint):
        return NAMES[hint][0] if hint in NAMES else getattr(hint, "__name__", str(hint))
    if _has_fixed_length(hint):
        same = len(set(args)) == 1
        items = f"{len(args)} {_plural(args[0])}" if same else _joined(map(described, args), "and")
        return f"a list of {items}"
    return f"a list of {_plural(args[0])}" if args else "a list"


def _plural(hint: Any) -> str:
    if get_origin(hint) is Annotated:
        kind, *notes = get_args(hint)
        return " ".join([_plural(kind), *map(str, notes)])
    if hint in NAMES:
        return NAMES[hint][1]
    if is_list(hint):
        return described(hint).replace("a list", "lists", 1)
    return f"items that are {described(hint)}"


def _joined(names: Iterable[str], word: str) -> str:
    *first, last = names
    return f"{', '.join(first)} {word} {last}" if first else last
