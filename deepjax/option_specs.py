"""The options of a command line, read from its dataclass: flags, metavars, defaults, texts."""

import ast
import dataclasses
import functools
import inspect
import textwrap
import types
import typing
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class OptionSpec:
    """One option or positional argument, as `tyro` parses it."""

    flags: tuple[str, ...]
    """--name, of a boolean also --no-name; of a positional argument none."""
    metavar: str
    """Its value, such as INT or {sgd,adamw}; "" of a boolean."""
    choices: tuple[str, ...]
    """The allowed values, where they are enumerated."""
    text: str
    """The docstring of the field, in one line."""
    default: Any
    """dataclasses.MISSING where it is required."""
    group: str
    """The field that holds its dataclass; "" at the top."""
    about: str
    """The first paragraph of the docstring of the group's dataclass."""

    @property
    def name(self) -> str:
        """The first flag, or the metavar of a positional argument."""
        return self.flags[0] if self.flags else self.metavar

    @property
    def takes_value(self) -> bool:
        """Whether a value follows the flag."""
        return bool(self.flags and self.metavar)


def option_specs(options: type, default: Any = None) -> list[OptionSpec]:
    """The options of a dataclass, those of nested dataclasses after its own.

    default: an instance with other defaults; fields that are tyro.MISSING in it are required.
    """
    return list(_specs(options, default, group="", prefix="", omit=False))


def _specs(
    options: type, default: Any, group: str, prefix: str, omit: bool
) -> Iterator[OptionSpec]:
    about = inspect.cleandoc(options.__doc__ or "").split("\n\n")[0].replace("\n", " ")
    hints = typing.get_type_hints(options, include_extras=True)
    nested = []
    for field in dataclasses.fields(options):
        kind, positional, omits, given = _annotation(hints[field.name])
        value = _default(field) if default is None else getattr(default, field.name)
        name = field.name if given.get("name") is None else given["name"]
        if dataclasses.is_dataclass(kind):
            inner = None if value is dataclasses.MISSING else value
            inside = "" if omit or omits or not name else f"{prefix}{name}."
            nested.append((kind, inner, field.name, inside, omit or omits))
            continue
        metavar, choices = _values(kind)
        flag = f"{prefix}{name}".replace("_", "-")
        flags = () if positional else (f"--{flag}",)
        if kind is bool:
            flags = (f"--{flag}", f"--{prefix}no-{name}".replace("_", "-"))
        text = field_texts(options).get(field.name, "")
        metavar = given.get("metavar") or metavar
        yield OptionSpec(flags, metavar, choices, text, _shown(value), group, about)
    for kind, inner, inner_group, inside, inner_omit in nested:
        yield from _specs(kind, inner, inner_group, inside, inner_omit)


def _annotation(hint: Any) -> tuple[Any, bool, bool, dict[str, Any]]:
    """The type; whether it is positional; whether it omits prefixes; name and metavar if given."""
    import tyro

    metadata = getattr(hint, "__metadata__", ())
    kind = typing.get_args(hint)[0] if metadata else hint
    given = {
        key: getattr(each, key)
        for each in metadata
        for key in ("name", "metavar")
        if getattr(each, key, None) is not None
    }
    positional = tyro.conf.Positional in metadata
    return kind, positional, tyro.conf.OmitArgPrefixes in metadata, given


def _default(field: dataclasses.Field[Any]) -> Any:
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()


def _shown(value: Any) -> Any:
    import tyro

    return dataclasses.MISSING if value is tyro.MISSING else value


def _values(kind: Any) -> tuple[str, tuple[str, ...]]:
    """The metavar and the choices of a type."""
    arguments = typing.get_args(kind)
    origin = typing.get_origin(kind)
    if kind is bool:
        return "", ()
    if origin is Literal:
        choices = tuple(map(str, arguments))
        return "{" + ",".join(choices) + "}", choices
    if origin is tuple:
        metavar, choices = _values(arguments[0])
        return f"{metavar} ...", choices
    if origin in (typing.Union, types.UnionType):
        parts = [_values(each) for each in arguments if each is not type(None)]
        return "|".join(metavar for metavar, _ in parts), sum((more for _, more in parts), ())
    if inspect.isclass(kind) and issubclass(kind, Path):
        return "PATH", ()
    return {int: "INT", float: "FLOAT"}.get(kind, "STR"), ()


@functools.cache
def field_texts(options: type) -> dict[str, str]:
    """The docstring below each field of a dataclass and its bases, in one line.

    Empty for a class without source, such as one made in an interactive session.
    """
    found: dict[str, str] = {}
    for base in options.__bases__:
        if dataclasses.is_dataclass(base):
            found |= field_texts(base)
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(options)))
    except (OSError, TypeError):
        return found
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef))
    for field, below in pairwise(body):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            found[field.target.id] = " ".join(str(below.value.value).split())
    return found
