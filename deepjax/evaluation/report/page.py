"""The report of a run: figures first, then classes, options, hardware and commands."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure as Plot

from deepjax.analysis.plots import save
from deepjax.data import Split
from deepjax.data.encoded_split import EncodedSplit
from deepjax.data.label_names import label_names
from deepjax.evaluation.class_errors import ClassErrors, class_errors
from deepjax.evaluation.images import read_labels, read_views, shape_buckets
from deepjax.evaluation.predict import EvalModel
from deepjax.evaluation.protocols import Protocol
from deepjax.evaluation.report.figures import (
    MAX_CLASSES,
    draw_confusion,
    draw_curves,
    draw_gradient_map,
    draw_worst,
)
from deepjax.html_page import Figure, Table, definitions_html, figure_html, page_html, table_html
from deepjax.io import write_text
from deepjax.training.run_directory.command import changed_options, train_command
from deepjax.training.run_directory.run_summary import RunSummary
from deepjax.training.run_directory.starts import read_starts

REPORT_FILE, FIGURES = "report.html", "report"
WORST_IMAGES = 24
NAME_CHARACTERS = 14  # of a class name above a small image


@dataclasses.dataclass(frozen=True)
class TestResult:
    """Predictions for the test images of a run's data set."""

    member: EvalModel
    protocol: Protocol
    split: Split | EncodedSplit
    scores: np.ndarray
    """Log-probabilities (images, classes)."""


def write_run_report(run: RunSummary, result: TestResult | None) -> Path:
    """Write report.html and its figures into a run directory; returns the page.

    A report that is there is replaced. result: None for a page without test images.
    """
    figures, tables = [], []

    def add(name: str, plot: Plot, caption: str) -> None:
        figures.append(Figure(save(plot, run.path / FIGURES / f"{name}.png"), caption))

    if run.epochs:
        add("curves", draw_curves(run.epochs), _CURVES)
        add("gradients", draw_gradient_map(run.epochs), _GRADIENTS)
    if result is not None:
        names, labels = label_names(result.member.dataset), read_labels(result.split)
        found = class_errors(result.scores, labels, result.member.dataset, names)
        if found is not None:
            if found.confusion and len(names) <= MAX_CLASSES:
                add("confusion", draw_confusion(found.confusion, names), _CONFUSION)
            _add_worst(add, result, labels[:, 0], names)
            tables.append(_class_table(found))
    return _write(run, figures, [*tables, _final_table(run), _option_table(run)])


_CURVES = (
    "Training error is the mean over the augmented images of an epoch, in training mode; test "
    "error is measured at the end of the epoch."
)
_GRADIENTS = (
    "Gradient norm of every kernel, mean over the steps of an epoch; the layer nearest to the "
    "input is at the top."
)
_CONFUSION = "Test images by class and predicted class, in per cent of the class; below 0.5 blank."
_WORST = "Each image with its class, the predicted one, and the probability of the latter."


def _add_worst(add, result: TestResult, labels: np.ndarray, names: Sequence[str]) -> None:
    predicted = np.argmax(result.scores, axis=1)
    wrong = np.flatnonzero((predicted != labels) & (labels >= 0))
    if not len(wrong):
        return
    confidence = result.scores[wrong, predicted[wrong]]
    chosen = wrong[np.argsort(-confidence, kind="stable")[:WORST_IMAGES]]
    captions = [
        f"{_short(names[labels[i]])}\n→ {_short(names[predicted[i]])} "
        f"{100 * np.exp(result.scores[i, predicted[i]]):.0f} %"
        for i in chosen
    ]
    plot = draw_worst(_pixels(result, chosen), captions, len(wrong), len(labels))
    add("worst", plot, _WORST)


def _pixels(result: TestResult, chosen: Sequence[int]) -> list[np.ndarray]:
    """The images that the network saw: the first crop of each, or the stored array."""
    views = result.protocol, result.member.interpolation
    bucket = shape_buckets(result.split, result.protocol, result.member.crop)[0]
    return [read_views(result.split, int(i), bucket, *views)[0][0] for i in chosen]


def _short(name: str) -> str:
    return name if len(name) <= NAME_CHARACTERS else f"{name[: NAME_CHARACTERS - 1]}…"


def _class_table(found: ClassErrors) -> Table:
    rows = sorted(found.classes, key=lambda each: -each.error)
    return Table(
        "Test error by class, the greatest first",
        ("class", "error", "misclassified", "images"),
        [
            (each.label, f"{100 * each.error:.2f} %", f"{each.errors:,}", f"{each.images:,}")
            for each in rows
        ],
    )


def _final_table(run: RunSummary) -> Table:
    final = run.rows[-1] if run.state == "done" else {}
    rows = [
        (
            split,
            f"{100 * final[f'{split}_error']:.2f} %",
            f"{final[f'{split}_loss']:.4f}",
            f"{final[f'{split}_images']:,}",
        )
        for split in ("train", "test")
        if f"{split}_error" in final
    ]
    caption = "At the end of training, in evaluation mode"
    if not rows:
        caption += f": not measured, the run is {run.state} at step {run.step:,}"
    return Table(caption, ("split", "error", "loss", "images"), rows)


def _option_table(run: RunSummary) -> Table:
    rows = [(name, str(value)) for name, value in changed_options(run.config).items()]
    return Table("Options that are not defaults", ("option", "value"), rows)


def _write(run: RunSummary, figures: Sequence[Figure], tables: Sequence[Table]) -> Path:
    starts = read_starts(run.path)
    origin = {"train it again": train_command(run.config, str(run.path))}
    for start in starts[-1:]:
        origin |= {name: str(start[name]) for name in ("hardware", "versions") if name in start}
    if starts:
        times = ", ".join(f"step {start.get('step')} at {start.get('time')}" for start in starts)
        origin["process starts"] = times
    parts = [
        *map(figure_html, figures),
        *map(table_html, tables),
        "<h2>Run it again</h2>",
        definitions_html(origin),
    ]
    title = f"{run.config.model} on {run.config.dataset}: {_outcome(run)}"
    path = run.path / REPORT_FILE
    write_text(path, page_html(title, parts))
    return path


def _outcome(run: RunSummary) -> str:
    test = run.last("test_error")
    if run.state == "done" and test is not None:
        return f"test error {100 * test:.2f} %"
    return f"{run.state} at step {run.step:,} of {run.total_steps:,}"
