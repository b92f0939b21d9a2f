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
from deepjax.errors import InputError
from deepjax.evaluation.class_errors import ClassErrors, class_errors
from deepjax.evaluation.images import read_labels, read_views, shape_buckets
from deepjax.evaluation.predict import EvalModel
from deepjax.evaluation.protocols import Protocol
from deepjax.evaluation.report.figures import (
    MAX_CLASSES,
    class_texts,
    draw_confusion,
    draw_curves,
    draw_gradient_map,
    draw_time,
    draw_worst,
)
from deepjax.html_page import (
    Figure,
    Table,
    definitions_html,
    details_html,
    figure_html,
    page_html,
    table_html,
)
from deepjax.io import write_text
from deepjax.training.checkpoint.run_copy import name_of_run
from deepjax.training.config import CUSTOM_NETWORK_PREFIX
from deepjax.training.metrics.loop_clock import time_by_part
from deepjax.training.run_directory.average import read_average
from deepjax.training.run_directory.command import changed_options, train_command
from deepjax.training.run_directory.run_summary import RunSummary
from deepjax.training.run_directory.starts import read_starts

REPORT_FILE, FIGURES = "report.html", "report"
WORST_IMAGES = 24
NAME_CHARACTERS, SHORT_CHARACTERS = 24, 14  # of a class name on an axis, above a small image
MAX_ROWS = 40  # of the table of classes


@dataclasses.dataclass(frozen=True)
class RunPredictions:
    """Predictions for the test images of a run's data set."""

    member: EvalModel
    protocol: Protocol
    split: Split | EncodedSplit
    scores: np.ndarray
    """Log-probabilities (images, classes)."""


def write_run_report(run: RunSummary, result: RunPredictions | None) -> Path:
    """Write report.html and its figures into a run directory; returns the page.

    A report that is there is replaced. result: None for a page without test images. Raises
    InputError where a file cannot be written.
    """
    figures, tables = [], []

    def add(name: str, plot: Plot, caption: str) -> None:
        path = run.path / FIGURES / f"{name}.png"
        try:
            figures.append(Figure(save(plot, path), caption))
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}") from error

    if run.epochs:
        network = f"{run.config.model} on {run.config.dataset}"
        add("curves", draw_curves(run.epochs, network), _CURVES)
        add("gradients", draw_gradient_map(run.epochs), _GRADIENTS)
    if time_by_part(run.rows):
        timed = [row for row in run.rows if row["kind"] in ("epoch", "final")]
        add("time", draw_time(timed), _TIME)
    if result is not None:
        names, labels = label_names(result.member.dataset), read_labels(result.split)
        found = class_errors(result.scores, labels, result.member.dataset, names)
        if found is not None:
            if found.confusion and len(names) <= MAX_CLASSES:
                texts = class_texts(names, NAME_CHARACTERS)
                add("confusion", draw_confusion(found.confusion, texts), _CONFUSION)
            _add_worst(add, result, labels[:, 0], names)
            tables.append(_class_table(found, result.member.step))
    return _write(run, figures, [*tables, _final_table(run), _option_table(run)])


_CURVES = (
    "Training error and loss are means over the augmented images of an epoch, in training mode; "
    "those of the test are measured at the end of the epoch."
)
_GRADIENTS = (
    "Gradient norm of every kernel, mean over the steps of an epoch; the layer nearest to the "
    "input is at the top."
)
_TIME = (
    "Time of the training loop by part; the last bar of a complete run is the last save and the "
    "final evaluation. Input (waiting for a batch) and host (Python) count only while the devices "
    "had nothing to compute, checkpoint only while a save held up the loop; a save at the end of "
    "an epoch is in the next bar."
)
_CONFUSION = "Test images by class and predicted class, in per cent of the class; below 0.5 blank."
_WORST = "Each image with its class, the predicted one, and the probability of the latter."


def _add_worst(add, result: RunPredictions, labels: np.ndarray, names: Sequence[str]) -> None:
    """The misclassified images with the highest probability; none without one."""
    predicted = np.argmax(result.scores, axis=1)
    mistaken = np.flatnonzero((predicted != labels) & (labels >= 0))
    if not len(mistaken):
        return
    confidence = result.scores[mistaken, predicted[mistaken]]
    chosen = mistaken[np.argsort(-confidence, kind="stable")[:WORST_IMAGES]]
    texts = class_texts(names, SHORT_CHARACTERS)
    captions = [
        f"{texts[labels[i]]}\n→ {texts[predicted[i]]}, "
        f"{100 * np.exp(result.scores[i, predicted[i]]):.0f} %"
        for i in chosen
    ]
    plot = draw_worst(_pixels(result, chosen), captions, len(mistaken), len(labels))
    add("worst", plot, _WORST)


def _pixels(result: RunPredictions, chosen: np.ndarray) -> list[np.ndarray]:
    """The images that the network saw: the first crop of each, or the stored array."""
    views = result.protocol, result.member.interpolation
    bucket = shape_buckets(result.split, result.protocol, result.member.crop)[0]
    return [read_views(result.split, int(i), bucket, *views)[0][0] for i in chosen]


def _class_table(found: ClassErrors, step: int) -> Table:
    rows = sorted(found.classes, key=lambda each: -each.error)
    errors, images = (sum(getattr(each, name) for each in rows) for name in ("errors", "images"))
    total = f"{100 * errors / images:.2f} % of {images:,} test images"
    shown = f"the {MAX_ROWS} classes of the greatest error of {len(rows):,}"
    which = shown if len(rows) > MAX_ROWS else "classes, the greatest error first"
    return Table(
        f"Test error after step {step:,}, in one crop of each image: {total}; {which}",
        ("class", "error", "misclassified", "images"),
        [
            (each.label, f"{100 * each.error:.2f} %", f"{each.errors:,}", f"{each.images:,}")
            for each in rows[:MAX_ROWS]
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
        caption += f": not measured ({_state_text(run)})"
    return Table(caption, ("split", "error", "loss", "images"), rows)


def _option_table(run: RunSummary) -> Table:
    rows = [(name, str(value)) for name, value in changed_options(run.config).items()]
    return Table("Options that are not defaults", ("option", "value"), rows)


def _write(run: RunSummary, figures: Sequence[Figure], tables: Sequence[Table]) -> Path:
    parts = [
        *map(figure_html, figures),
        *map(table_html, tables),
        "<h2>How it was trained</h2>",
        definitions_html(_origin(run)),
        details_html("All options (config.json)", (run.path / "config.json").read_text()),
    ]
    title = f"{run.config.model} on {run.config.dataset}: {_outcome(run)}"
    path = run.path / REPORT_FILE
    write_text(path, page_html(title, parts))
    return path


def _origin(run: RunSummary) -> dict[str, str]:
    """The command, and what the starts of its processes recorded; of an average what it is of."""
    if (average := read_average(run.path)) is not None:
        return {"weights": average.describe()}
    # A network of a name of this kind was made by a caller in Python.
    is_own = run.config.model.startswith(CUSTOM_NETWORK_PREFIX)
    origin = {} if is_own else {"command": train_command(run.config, name_of_run(run.path))}
    starts = read_starts(run.path)
    for start in starts[-1:]:
        origin |= {name: str(start[name]) for name in ("hardware", "versions") if name in start}
    if starts:
        times = (f"from step {start['step']:,} at {start.get('time')}" for start in starts)
        origin["process starts"] = ", ".join(times)
    return origin


def _outcome(run: RunSummary) -> str:
    if run.state == "done":
        return f"test error {100 * run.rows[-1]['test_error']:.2f} %"
    return _state_text(run)


def _state_text(run: RunSummary) -> str:
    if run.state == "average":
        return "an average of checkpoints"
    return f"{run.state} at step {run.step:,} of {run.total_steps:,}"
