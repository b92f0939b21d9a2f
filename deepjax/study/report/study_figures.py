"""Figures as a study declares them: what is drawn, the caption, and the claim that is the title."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from deepjax.analysis.plots import COLORS, Curve
from deepjax.study.baselines import baseline
from deepjax.study.report.plots import (
    LinesPanel,
    RowsPanel,
    Scale,
    lines_figure,
    rows_figure,
)
from deepjax.study.results import StudyResults

Draw = Callable[[StudyResults, str], Figure | None]
"""From results and a title to a figure; None where the preset lacks its arms."""
SETS = {"train": "training", "test": "test"}


@dataclasses.dataclass(frozen=True)
class StudyFigure:
    """One figure of a study."""

    name: str
    """The file is NAME.png."""
    draw: Draw
    caption: str
    claim: str = ""
    """The beginning of a claim's text: its verdict is the title."""


def figure_title(figure: StudyFigure, results: StudyResults) -> str:
    """The finding: the claim as it was judged, with its first effect; unjudged, the caption."""
    if not figure.claim or not results.verdicts:
        return figure.caption.split(". ")[0].rstrip(".")
    verdict = results.verdict(figure.claim)
    lead = {
        "supported": "",
        "refuted": "Refuted: ",
        "inconclusive": "Inconclusive: ",
        "not trained": "Not trained: ",
    }[verdict.outcome]
    text = lead + verdict.claim
    if verdict.effects:
        effect = verdict.effects[0]
        low, high = effect.complete
        text += f"\n{effect.name}: {effect.mean:#.3g} [{low:#.3g}, {high:#.3g}]{effect.unit}"
    return text


def error_rows(
    name: str, caption: str, arms: Mapping[str, str] | Sequence[str], claim: str = ""
) -> StudyFigure:
    """Final errors of arms on both sets, a row each; arms: names, or label by name."""
    labels = dict(arms) if isinstance(arms, Mapping) else {arm: _label(arm) for arm in arms}

    def draw(results: StudyResults, title: str) -> Figure | None:
        there = {arm: label for arm, label in labels.items() if arm in results.arms}
        if not there:
            return None
        panels = [
            RowsPanel(
                f"{SETS[split].capitalize()} images",
                f"{SETS[split]} error (%)",
                {
                    label: [100 * each for each in results.arms[arm].errors(split)]
                    for arm, label in there.items()
                },
                references(results.preset.dataset, split),
            )
            for split in ("train", "test")
        ]
        return rows_figure(title, panels)

    return StudyFigure(name, draw, caption, claim)


def error_lines(
    name: str,
    caption: str,
    kinds: Mapping[str, Mapping[Any, str]],
    x_label: str,
    claim: str = "",
    x_scale: Scale = "log",
) -> StudyFigure:
    """Final errors over a number such as depth; kinds: by label, the arm at each x."""

    def draw(results: StudyResults, title: str) -> Figure | None:
        panels = []
        for split in ("train", "test"):
            curves = []
            for (label, by_x), color in zip(kinds.items(), COLORS, strict=False):
                there = {x: results.arms[arm] for x, arm in by_x.items() if arm in results.arms}
                if there:
                    errors = [[100 * each for each in arm.errors(split)] for arm in there.values()]
                    by_seed = np.transpose(errors).tolist()
                    curves.append(Curve(label, list(there), by_seed, color, "o-"))
            lines = references(results.preset.dataset, split)
            panels.append(LinesPanel(f"{SETS[split].capitalize()} images", curves, lines))
        if not panels[0].curves:
            return None
        ticks = sorted({x for by_x in kinds.values() for x in by_x})
        return lines_figure(title, panels, (x_label, "error (%)"), x_scale, x_ticks=ticks)

    return StudyFigure(name, draw, caption, claim)


def error_by_epoch(
    name: str, caption: str, groups: Mapping[str, Mapping[str, str]], claim: str = ""
) -> StudyFigure:
    """Errors by epoch, training (a mean over the epoch) dashed and test solid.

    groups: by the panel's title, the arm of each label.
    """

    def draw(results: StudyResults, title: str) -> Figure | None:
        panels = []
        for panel, arms in groups.items():
            curves = []
            for (label, arm), color in zip(arms.items(), COLORS, strict=False):
                by_seed = results.arms[arm].epochs() if arm in results.arms else []
                if not by_seed:  # not in this preset, or all diverged
                    continue
                x = [row["epoch"] for row in by_seed[0]]
                for part, key, line in (
                    ("_train", "running_error", "--"),
                    (label, "test_error", "-"),
                ):
                    y = [[100 * row[key] for row in rows] for rows in by_seed]
                    curves.append(Curve(part, x, y, color, line))
            if curves:
                lines = references(results.preset.dataset, "test")
                lines = {"linear classifier": lines["linear classifier"]}
                panels.append(LinesPanel(f"{panel} (dashed: training, solid: test)", curves, lines))
        axes = ("epoch", "error (%)")
        if not panels:
            return None
        return lines_figure(title, panels, axes, y_scale="log", labels_at=0.02)

    return StudyFigure(name, draw, caption, claim)


def value_rows(
    name: str,
    caption: str,
    rows: Mapping[str, tuple[Any, ...]],
    x_label: str,
    claim: str = "",
    scale: Scale = "linear",
    references: Mapping[str, float] | None = None,
    split: str = "",
) -> StudyFigure:
    """Measured values, a row each; rows: by label, the path of the value (lists are averaged).

    split: "train" or "test" for errors in per cent, with the baselines as reference lines.
    """

    def draw(results: StudyResults, title: str) -> Figure:
        values = {
            label: [float(np.mean(value)) for value in results.values(*path)]
            for label, path in rows.items()
            if not results.lacks(path[0])
        }
        lines = _baselines(results, split) | dict(references or {})
        return rows_figure(title, [RowsPanel("", x_label, values, lines)], scale)

    return StudyFigure(name, draw, caption, claim)


def value_lines(
    name: str,
    caption: str,
    lines: Mapping[str, tuple[Any, ...]],
    axes: tuple[str, str],
    x: Sequence[float] | None = None,
    claim: str = "",
    x_scale: Scale = "linear",
    y_scale: Scale = "linear",
    reference: Mapping[str, Sequence[float]] | None = None,
) -> StudyFigure:
    """Measured lists as lines; reference: dotted lines, such as a theory.

    lines: by label, the path of a list of one length for all seeds, or of a mapping by x.
    x: default the keys of such a mapping, if they are numbers, and else 1, 2, ...
    """

    def draw(results: StudyResults, title: str) -> Figure:
        curves = []
        for (label, path), color in zip(lines.items(), COLORS, strict=False):
            if results.lacks(path[0]):
                continue
            values = results.values(*path)
            points: Sequence[float] = x or range(1, 1 + len(values[0]))
            if isinstance(values[0], Mapping):
                points = x or _numbers(values[0]) or points
                values = [list(each.values()) for each in values]
            style = "-" if len(points) > 1 else "o"
            curves.append(Curve(label, list(points), values, color, style))
        for label, y in (reference or {}).items():
            points = x or range(1, 1 + len(y))
            curves.append(Curve(label, list(points), [list(y)], "0.5", ":"))
        ticks = list(x) if x and len(x) <= 10 else ()
        if x_scale == "log" and not ticks and len(curves[0].x) <= 10:
            ticks = list(curves[0].x)
        return lines_figure(title, [LinesPanel("", curves)], axes, x_scale, y_scale, x_ticks=ticks)

    return StudyFigure(name, draw, caption, claim)


def gradient_profile(
    name: str, caption: str, arms: Mapping[str, str], claim: str = ""
) -> StudyFigure:
    """Gradient norm by layer at the first step and in the last epoch; arms: label by name.

    x runs from 0 at the input to 1 at the output, to compare depths.
    """

    def draw(results: StudyResults, title: str) -> Figure | None:
        panels = []
        for moment in ("first step", "last epoch"):
            curves = []
            for (arm, label), color in zip(arms.items(), COLORS, strict=False):
                result = results.arms.get(arm)
                if result and result.finished:
                    found = result.first() if moment == "first step" else result.last()
                    by_seed = [list(norms.values()) for norms in found]
                    x = np.linspace(0, 1, len(by_seed[0])).tolist()
                    curves.append(Curve(label, x, by_seed, color))
            panels.append(LinesPanel(moment.capitalize(), curves))
        if not panels[0].curves:
            return None
        labels = ("position of the layer, from input to output", "gradient norm of the kernel")
        return lines_figure(title, panels, labels, y_scale="log")

    return StudyFigure(name, draw, caption, claim)


def references(dataset: str, split: str) -> dict[str, float]:
    """The errors of simple classifiers in per cent, for the reference lines of error figures."""
    found = baseline(dataset)
    if split == "train":
        return {"linear classifier": 100 * found.linear_train}
    return {
        "linear classifier": 100 * found.linear_test,
        "3 nearest neighbours": 100 * found.neighbours_test,
    }


def _baselines(results: StudyResults, split: str) -> dict[str, float]:
    return references(results.preset.dataset, split) if split else {}


def _numbers(keys: Iterable[str]) -> list[float]:
    """The keys of a JSON mapping as numbers; none where they are names."""
    try:
        return [float(key) for key in keys]
    except ValueError:
        return []


def _label(arm: str) -> str:
    return arm.replace("_", " ")
