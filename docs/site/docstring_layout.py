"""Docstrings of deepjax as Markdown: a list of the parameters that their text describes.

A docstring names parameters within its text, "layers: paths or patterns. key: one JAX key.", and
breaks a line where a new statement begins. In Markdown both would run into one paragraph.
"""

import re
from collections.abc import Collection
from itertools import pairwise

COLUMNS = 100
_VERBATIM = ("    ", "- ", "* ", "|", "```", "1. ")


def layout(text: str, parameters: Collection[str], indent: int) -> str:
    """The text with a list item for each parameter, a paragraph for each statement, and examples.

    parameters: names that may be described. indent: columns before the docstring in its file, by
    which a line that ends early is recognised.
    """
    paragraphs = re.split(r"\n\s*\n", text)
    return "\n\n".join(_paragraph(each, parameters, indent) for each in paragraphs)


def _paragraph(text: str, parameters: Collection[str], indent: int) -> str:
    lines = text.splitlines()
    if not lines:
        return ""
    if lines[0].startswith(">>>"):
        return f"```pycon\n{text}\n```"
    if any(line.startswith(_VERBATIM) for line in lines):
        return text
    statements = [lines[0]]
    for before, line in pairwise(lines):
        first_word = len(line.split(" ")[0])
        if indent + len(before) + 1 + first_word <= COLUMNS and before.endswith((".", ":")):
            statements.append(line)
        else:
            statements[-1] += f" {line}"
    parts = [part for statement in statements for part in _split(statement, parameters)]
    rendered = [_item(part, parameters) for part in parts]
    text = rendered[0]
    for before, part in pairwise(rendered):
        both_items = before.startswith("- ") and part.startswith("- ")
        text += ("\n" if both_items else "\n\n") + part
    return text


def _names(parameters: Collection[str]) -> str:
    name = "|".join(rf"`?{re.escape(each)}`?" for each in sorted(parameters))
    return rf"(?:{name})(?:(?:, | and )(?:{name}))*"


def _split(statement: str, parameters: Collection[str]) -> list[str]:
    """The statement cut before each parameter that begins a sentence, and before "Raises"."""
    starts = [r"Raises \w"] + ([rf"{_names(parameters)}: "] if parameters else [])
    return re.split(rf"(?<=[.;)]) (?={'|'.join(starts)})", statement)


def _item(part: str, parameters: Collection[str]) -> str:
    found = re.match(rf"({_names(parameters)}): ", part) if parameters else None
    if not found:
        return part
    names = re.sub(r"[\w]+", lambda name: name[0] if name[0] == "and" else f"`{name[0]}`",
                   found[1].replace("`", ""))  # fmt: skip
    return f"- {names}: {part[found.end() :]}"
