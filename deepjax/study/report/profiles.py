"""Pictures of what was measured by layer, block or depth, over the seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deepjax.analysis.plots import COLORS, Curve
from deepjax.study.report.html import Figure
from deepjax.study.report.plots import lines_figure


def profile_picture(
    path: Path,
    title: str,
    axes: tuple[str, str],
    rows: Mapping[str, Sequence[Sequence[float]]],
    start: int = 1,
    **scale: Any,
) -> Figure:
    """A line for each row, (seeds, points), over start, start + 1, ...; axes: labels of x and y; `scale`: of `lines_figure`."""
    curves = [
        Curve(name, range(start, start + len(y[0])), y, color)
        for (name, y), color in zip(rows.items(), COLORS, strict=False)
    ]
    figure = lines_figure([(title, curves)], path, *axes, **scale)
    return Figure(
        figure,
        f"{axes[1].capitalize()} by {axes[0]}. Mean over seeds, band from the least to the greatest.",
    )
