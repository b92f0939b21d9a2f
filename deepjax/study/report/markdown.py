"""Text of the published pages: numbers, intervals, cells and tables of Markdown."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

POINTS = " points"


def format_value(value: float, unit: str = "") -> str:
    """Points with a sign and two decimals; other numbers with three digits."""
    if not math.isfinite(value):
        return "undefined"
    if unit == POINTS:
        return f"{value:+.2f}".replace("-0.00", "0.00").replace("+0.00", "0.00")
    size = abs(value)
    if value == 0 or 1e-3 <= size < 1e5:
        decimals = 2 if value == 0 else max(0, 2 - math.floor(math.log10(size)))
        return f"{value:,.{decimals}f}"
    return f"{value:.2e}"


def format_interval(bounds: Sequence[float], unit: str = "") -> str:
    """[lower, upper]."""
    return "[" + ", ".join(format_value(each, unit) for each in bounds) + "]"


def format_effect(effect: Mapping[str, Any]) -> str:
    """The mean with its unit."""
    return format_value(effect["mean"], effect["unit"]) + effect["unit"]


def format_p(p: float | None) -> str:
    """A p-value with two digits; empty for None."""
    if p is None:
        return ""
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def escape(text: str) -> str:
    """Text on one line in which no character has a meaning to Markdown, for tables too."""
    return re.sub(r"([\\|*_`])", r"\\\1", " ".join(text.split())).replace("<", "&lt;")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table; cells are escaped already."""
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def anchor(name: str) -> str:
    """The place that `[text](#name)` links to."""
    return f'<a id="{name}"></a>'


def sentence(text: str) -> str:
    """Text with a full stop at its end."""
    return text if text.endswith((".", "!", "?")) else f"{text}."
