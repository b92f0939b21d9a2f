"""What every result has: summary, rows, plot, a short text and a table in notebooks."""

import abc
import html
import math
from collections.abc import Mapping, Sequence
from numbers import Number
from typing import Any

import numpy as np

MAX_ROWS = 24  # of a table; of more the first and the last are shown
MAX_COLUMNS = 9


class Result(abc.ABC):
    """The result of an instrument. Its text is one line of numbers, and a table of its rows."""

    @abc.abstractmethod
    def summary(self) -> dict[str, Any]:
        """Numbers that describe the whole result, by name."""

    @abc.abstractmethod
    def rows(self) -> list[dict[str, Any]]:
        """One plain dict per layer, probe or point."""

    @abc.abstractmethod
    def plot(self, ax: Any = None, title: str | None = None) -> Any:
        """Draw it; returns the matplotlib Axes. title: in place of the finding."""

    def __repr__(self) -> str:
        """Name, summary and a table; never a big array."""
        numbers = ", ".join(f"{name} {_text(value)}" for name, value in self.summary().items())
        head = f"{type(self).__name__}: {numbers}"
        names, lines = _table(self.rows())
        if len(lines) < 2 or not names:
            return head
        cells = [names, *lines]
        widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
        body = ["  ".join(map(str.rjust, line, widths)).rstrip() for line in cells]
        return "\n".join([head, *body])

    def _repr_html_(self) -> str:
        """A table for notebooks."""
        numbers = (
            f"<b>{html.escape(name)}</b> {html.escape(_text(value))}"
            for name, value in self.summary().items()
        )
        head = f"<p><b>{type(self).__name__}</b>: {', '.join(numbers)}</p>"
        names, lines = _table(self.rows())
        if len(lines) < 2 or not names:
            return head
        columns = "".join(f"<th>{html.escape(name)}</th>" for name in names)
        body = "".join(
            f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in line)}</tr>"
            for line in lines
        )
        return f"{head}<table><thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table>"


def _table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """(names of the columns that have a value, cells); the middle of a long table is left out."""
    names = [name for name in rows[0] if any(row[name] is not None for row in rows)] if rows else []
    names = names[:MAX_COLUMNS]
    lines = [[_text(row[name]) for name in names] for row in ends(rows)]
    return names, shortened(lines, len(rows), ["..."] * len(names))


def ends(rows: Sequence[Any]) -> list[Any]:
    """The rows that a short table shows: of more than MAX_ROWS the first and the last."""
    half = MAX_ROWS // 2
    return list(rows) if len(rows) <= MAX_ROWS else [*rows[:half], *rows[-half:]]


def shortened(lines: list[Any], rows: int, gap: Any) -> list[Any]:
    """The lines of `ends(rows)`, with `gap` where rows are left out."""
    half = MAX_ROWS // 2
    return lines if rows <= MAX_ROWS else [*lines[:half], gap, *lines[half:]]


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool | np.bool_):
        return str(bool(value))
    if isinstance(value, Number) and not isinstance(value, int | np.integer | complex):
        number = float(value)  # type: ignore[arg-type]
        return str(number) if not math.isfinite(number) else f"{number:.4g}"
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    if isinstance(value, tuple | list):
        between = ", " if any(isinstance(each, str) for each in value) else "x"
        return between.join(map(_text, value)) or "()"
    return str(value)
