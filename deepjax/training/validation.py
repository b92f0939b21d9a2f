"""Checks of a configuration's fields: types against annotations, and values against rules.

A command line cannot give wrong types, Python and JSON can.
"""

import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, Union

from deepjax.errors import InputError, require

# Whether a value is allowed, and which are in words. NaN fails every comparison, and so every rule.
Rule = tuple[Callable[[Any], bool], str]

_WORDS = {
    bool: "True or False",
    int: "an integer",
    float: "a number",
    str: "a text",
    types.NoneType: "None",
}


def at_least(least: float, words: str = "") -> Rule:
    """`least` or more, but not infinity."""
    return half_open(least, float("inf"), words or f"{least} or more")


def half_open(least: float, limit: float, words: str) -> Rule:
    """From `least` up to, not including, `limit`."""
    return (lambda value: least <= value < limit), words


def between(least: float, most: float, words: str = "") -> Rule:
    """From `least` to `most`, both included."""
    return (lambda value: least <= value <= most), words or f"{least} to {most}"


def check_values(config: Any, **rules: Rule) -> None:
    """Raise InputError for the first named field of a dataclass whose value breaks its rule."""
    for field, (is_allowed, words) in rules.items():
        value = getattr(config, field)
        require(is_allowed(value), field, value, words)


def check_types(config: Any) -> None:
    """Raise InputError for the first field of a dataclass whose value is not of its annotated type.

    Supported: bool, int, float, str, None, dataclasses, tuples of one type, Literals and unions of
    these. A bool is not accepted as a number.
    """
    for name, kind in _hints(type(config)).items():
        given = getattr(config, name)
        if not _fits(given, kind):
            near = difflib.get_close_matches(
                str(given), [str(value) for value in _choices(kind)], n=1, cutoff=0.4
            )
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise InputError(f"{name} is {given!r}; {hint}allowed: {_description(kind)}")


@functools.cache
def _hints(kind: type) -> Mapping[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _fits(given: Any, kind: Any) -> bool:
    parts = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        return any(type(given) is type(value) and given == value for value in parts)
    if _is_union(kind):
        return any(_fits(given, part) for part in parts)
    if typing.get_origin(kind) is tuple:
        return isinstance(given, tuple) and all(_fits(value, parts[0]) for value in given)
    if kind in (int, float) and isinstance(given, bool):
        return False
    return isinstance(given, (int, float) if kind is float else kind)


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (Union, types.UnionType)


def _choices(kind: Any) -> tuple[Any, ...]:
    """The values of a Literal, also inside a union."""
    if typing.get_origin(kind) is Literal:
        return typing.get_args(kind)
    if _is_union(kind):
        return tuple(value for part in typing.get_args(kind) for value in _choices(part))
    return ()


def _description(kind: Any) -> str:
    parts = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        return ", ".join(map(repr, parts))
    if _is_union(kind):
        return " or ".join(map(_description, parts))
    if dataclasses.is_dataclass(kind):
        return f"a {getattr(kind, '__name__', kind)}"
    return f"a tuple, of each {_description(parts[0])}" if parts else _WORDS[kind]
