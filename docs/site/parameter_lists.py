"""The extension of griffe, which reads the docstrings for the API pages, that lays them out."""

import sys
from pathlib import Path
from typing import Any

import griffe

sys.path.append(str(Path(__file__).parent))
from docstring_layout import layout  # griffe runs this file by its path


class ParameterLists(griffe.Extension):
    """Every docstring by `docstring_layout`; that of a class with its fields and methods."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Replace the docstring of a function or a class."""
        if obj.docstring is None or not (obj.is_function or obj.is_class):
            return
        members = obj.members if obj.is_class else {}
        fields = [name for name, each in members.items() if each.is_attribute]
        names = [each.name for each in getattr(obj, "parameters", ())] + fields
        depth = len(obj.path.split(".")) - len(obj.module.path.split("."))
        text = layout(obj.docstring.value, names, 4 * depth)
        obj.docstring.value = text + "".join(_members(obj))


def _members(obj: griffe.Object) -> list[str]:
    """Lists of the public fields and methods of a class; empty for a function."""
    if not obj.is_class:
        return []
    public = [each for name, each in obj.members.items() if not name.startswith("_")]
    parts = []
    for title, kind in (("Fields", "is_attribute"), ("Methods", "is_function")):
        lines = [_line(each) for each in public if getattr(each, kind)]
        if lines:
            parts.append(f"\n\n**{title}**\n\n" + "\n".join(lines))
    return parts


def _line(member: griffe.Object | griffe.Alias) -> str:
    """A field with its default, or a method with its parameters, and its docstring."""
    name = member.name
    if member.is_function:
        given = [each.name for each in member.parameters if each.name != "self"]
        name = f"{name}({', '.join(given)})"
    elif member.value is not None and "field(" not in str(member.value):
        name = f"{name} = {member.value}"
    text = " ".join(member.docstring.value.split()) if member.docstring else ""
    return f"- `{name}`" + (f": {text}" if text else "")
