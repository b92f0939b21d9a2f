"""The help of a command: what it does, examples, the usual options in groups, then all of them."""

import dataclasses
import inspect
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from deepjax.option_specs import OptionSpec, option_specs

COLUMN = 26  # where the texts of options begin
WIDEST = 100  # columns of a line, on however wide a terminal
HELP_FLAGS = ("-h", "--help", "--help-all")


@dataclasses.dataclass(frozen=True)
class HelpPage:
    """The text of a command, and its usual options."""

    text: str
    """What the command does, with examples."""
    usual: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    """Text in a few words by option, by group: the first screen. Empty: it has all options."""


def action_page(options: type, text: str, action: str) -> HelpPage:
    """The page of an action such as "runs list", with its examples in the text of its command."""
    examples = [line for line in text.splitlines() if line.strip().startswith(f"deepjax {action} ")]
    return HelpPage("\n\n".join([inspect.cleandoc(str(options.__doc__)), "\n".join(examples)]))


def help_text(
    options: type, page: HelpPage | None = None, default: Any = None, every: bool = True
) -> str:
    """The help of a command. every: of all options, in place of the usual ones."""
    page = page or HelpPage(inspect.cleandoc(str(options.__doc__)))
    specs = option_specs(options, default)
    usual = {} if every else page.usual
    lines = [page.text.strip(), ""]
    if usual:
        known = {flag: spec for spec in specs for flag in (spec.name, *spec.flags)}
        for group, texts in usual.items():
            lines.append(group)
            lines += [_usual(known[name], name, text) for name, text in texts.items()]
        count = sum(bool(spec.flags) for spec in specs)
        lines += ["", f"--help-all shows all {count} options, with their defaults."]
    else:
        for group in dict.fromkeys(spec.group for spec in specs):
            members = [spec for spec in specs if spec.group == group]
            lines += ["", *_group(group, members)] if group else _top(members)
    return "\n".join(lines).rstrip()


def _top(specs: Sequence[OptionSpec]) -> list[str]:
    """Positional arguments, then options."""
    lines = []
    for title, with_flags in (("arguments", False), ("options", True)):
        members = [spec for spec in specs if bool(spec.flags) == with_flags]
        if members:
            lines += [title, *(line for spec in members for line in _full(spec)), ""]
    return lines[:-1]


def _group(group: str, specs: Sequence[OptionSpec]) -> list[str]:
    about = textwrap.wrap(f"{group}: {specs[0].about}", _columns())
    return [*about, *(line for spec in specs for line in _full(spec))]


def _usual(spec: OptionSpec, name: str, text: str) -> str:
    """One line of the first screen."""
    metavar = "CHOICE" if len(spec.metavar) > 12 else spec.metavar
    head = f"  {name} {metavar}".rstrip() if spec.flags else f"  {name}"
    return f"{head:{COLUMN}}{text}"


def _full(spec: OptionSpec) -> list[str]:
    """An option with its complete text and default, in lines."""
    shown = spec.flags[:1] if spec.default is False else spec.flags
    head = f"  {' '.join([', '.join(shown), spec.metavar]).strip()}"
    text = f"{spec.text} {_default(spec)}".strip()
    indent = " " * COLUMN
    lines = textwrap.wrap(
        text, _columns(), initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )
    if lines and len(head) < COLUMN - 1:
        return [f"{head:{COLUMN}}{lines[0].lstrip()}", *lines[1:]]
    return [head, *lines]


def _default(spec: OptionSpec) -> str:
    """The default in parentheses; "" where it is empty, which the text of the option explains."""
    value = spec.default
    if value is dataclasses.MISSING:
        return "(required)"
    if value is None or value is False or value in ("", ()):
        return ""
    shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
    shown = spec.flags[0] if value is True else shown
    return f"(default: {shown})"


def _columns() -> int:
    return min(shutil.get_terminal_size().columns, WIDEST)
