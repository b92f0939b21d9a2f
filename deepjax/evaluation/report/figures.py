"""The figures of a run's report; the title of each states what it shows."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from deepjax.analysis.plots import (
    COLORS,
    STYLE,
    format_number,
    format_percent,
    plain_log_ticks,
)
from deepjax.training.metrics.loop_clock import PARTS, TIME, time_by_part
from deepjax.training.metrics.writer import Row

MAX_CLASSES = 30  # of a confusion matrix whose names can be read
MAX_LAYERS = 60  # named layers of the gradient map
WORST_COLUMNS = 6


def class_texts(names: Sequence[str], characters: int) -> list[str]:
    """Names of classes for a figure: cut to so many characters.

    A name with characters that the font lacks, which would be boxes, is its label's number.
    """
    with plt.style.context(STYLE):
        known = get_font(findfont(FontProperties())).get_charmap()
    return [
        (name if len(name) <= characters else f"{name[: characters - 1]}…")
        if all(ord(character) in known for character in name)
        else str(label)
        for label, name in enumerate(names)
    ]


def draw_curves(epochs: Sequence[Row], run: str) -> Figure:
    """Running training error and test error by epoch; below them both losses and the rate.

    run: the network and its data, for the title.
    """
    with plt.style.context(STYLE):
        figure, (top, middle, bottom) = plt.subplots(
            3, 1, figsize=(8, 6.5), sharex=True, height_ratios=(3, 2, 1)
        )
        x = [row["epoch"] for row in epochs]
        styles = (("running", "training, running mean", "--o"), ("test", "test", "-o"))
        errors = {name: [100 * row[f"{name}_error"] for row in epochs] for name, _, _ in styles}
        for (name, label, line), color in zip(styles, COLORS, strict=False):
            top.plot(x, errors[name], line, markersize=3, label=label, color=color)
            losses = [row[f"{name}_loss"] for row in epochs]
            middle.plot(x, losses, line, markersize=3, color=color)
        test = errors["test"]
        _plain_axis(top, list(errors.values()), "error (%)")
        top.set_title(
            f"{run}: test error {test[-1]:.2f} % after epoch {x[-1]:g}\n"
            f"the least is {min(test):.2f} %, after epoch {x[int(np.argmin(test))]:g}"
        )
        top.legend()
        _plain_axis(middle, [line.get_ydata() for line in middle.lines], "loss")
        bottom.plot(x, [row["learning_rate"] for row in epochs], color=COLORS[2])
        bottom.set(xlabel="epoch", ylabel="learning rate", ylim=(0, None))
        bottom.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    return figure


def _plain_axis(ax: Axes, values: ArrayLike, label: str) -> None:
    """Logarithmic where values get small, so that their differences can be seen."""
    low, high = float(np.min(values)), float(np.max(values))
    small = low > 0 and high > 10 * low
    ax.set_yscale("log" if small else "linear")
    if not small:
        ax.set_ylim(0, 1.05 * high or 1)
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    plain_log_ticks(ax)
    ax.set_ylabel(label)


def draw_gradient_map(epochs: Sequence[Row]) -> Figure:
    """Mean norm of each kernel's gradient by layer and epoch, on a logarithmic colour scale."""
    layers = list(epochs[0]["gradient_norms"])
    norms = np.array([[row["gradient_norms"][layer] for row in epochs] for layer in layers])
    positive = norms[norms > 0]
    smallest = positive.min() if positive.size else 1e-30
    last = norms[:, -1][norms[:, -1] > 0]
    with plt.style.context(STYLE):
        figure, ax = plt.subplots(figsize=(8, min(10, 2 + 0.18 * len(layers))))
        x = [row["epoch"] for row in epochs]
        first = x[0] - (x[1] - x[0] if len(x) > 1 else 1)
        edges = np.array([first, *x])
        mesh = ax.pcolormesh(
            edges, np.arange(len(layers) + 1), np.log10(np.maximum(norms, smallest)), cmap="viridis"
        )
        every = max(1, -(-len(layers) // MAX_LAYERS))
        ax.set_yticks(np.arange(0, len(layers), every) + 0.5, layers[::every], fontsize=7)
        ax.set(xlabel="epoch", ylim=(len(layers), 0))
        ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        ax.grid(False)
        figure.colorbar(mesh, label="log10 of the gradient norm")
        ratio = format_number(last.max() / last.min()) if last.size else "an unknown number of"
        ax.set_title(f"In the last epoch the largest gradient norm is {ratio} times the smallest")
    return figure


def draw_time(rows: Sequence[Row]) -> Figure:
    """Seconds by part, stacked: a bar for each epoch, and one for what follows the last.

    rows: of epochs, then the final one if there is one; those without times have no bar.
    """
    parts = time_by_part(rows)
    largest, total = next(iter(parts)), sum(parts.values())
    ends = [0.0, *(row["epoch"] for row in rows if row["kind"] == "epoch")]
    edges = np.array([*ends, ends[-1] + 1])[: len(rows) + 1]
    with plt.style.context(STYLE):
        figure, ax = plt.subplots(figsize=(8, 3))
        bottom = np.zeros(len(rows))
        for part, color in zip(PARTS, COLORS, strict=False):
            heights = np.array([row.get(TIME, {}).get(part, 0.0) for row in rows])
            if part in parts:
                bars = {"align": "edge", "edgecolor": "white", "linewidth": 0.3}
                ax.bar(edges[:-1], heights, np.diff(edges), bottom, color=color, label=part, **bars)
            bottom += heights
        ax.set(xlabel="epoch", ylabel="seconds", xlim=(0, edges[-1]))
        ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        ax.xaxis.set_major_formatter(lambda x, _: f"{x:g}" if x <= ends[-1] else "end")
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1), reverse=True)
        ax.set_title(
            f"Where the time went: {_PART_NAMES[largest]} took "
            f"{format_percent(parts[largest] / total)} of {total:,.1f} s"
        )
    return figure


_PART_NAMES: dict[str, str] = {
    "input": "waiting for input",
    "host": "Python on the host",
    "device": "computing on the devices",
    "checkpoint": "saving checkpoints",
    "evaluation": "evaluation",
    "instruments": "instruments and profiles",
}


def draw_confusion(confusion: Sequence[Sequence[int]], names: Sequence[str]) -> Figure:
    """Test images by class (row) and predicted class (column), in per cent of the row.

    names: from `class_texts`.
    """
    counts = np.asarray(confusion, float)
    totals = counts.sum(1, keepdims=True)
    part = 100 * np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    wrong = part - np.diag(np.diag(part))
    label, predicted = map(int, np.unravel_index(np.argmax(wrong), wrong.shape))
    with plt.style.context(STYLE):
        side = 2.5 + 0.4 * len(names)
        figure, ax = plt.subplots(figsize=(side + 1, side))
        ax.imshow(part, cmap="Blues", vmin=0, vmax=100)
        for row, column in np.argwhere(part >= 0.5):
            color = "white" if part[row, column] > 55 else "black"
            text = f"{part[row, column]:.0f}"
            ax.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
        at, turned = range(len(names)), max(map(len, names)) > 3
        ax.set_xticks(at, names, rotation=90 if turned else 0, fontsize=8, parse_math=False)
        ax.set_yticks(at, names, fontsize=8, parse_math=False)
        ax.set(xlabel="predicted class", ylabel="class")
        ax.grid(False)
        ax.set_title(
            f"Most often mistaken: {names[label]} for {names[predicted]}, "
            f"{wrong[label, predicted]:.1f} % of its images"
            if wrong.any()
            else "No test image is misclassified",
            parse_math=False,
        )
    return figure


def draw_worst(
    images: Sequence[np.ndarray], captions: Sequence[str], misclassified: int, total: int
) -> Figure:
    """Misclassified images, each with its classes. images: uint8 (height, width, channels)."""
    columns = min(WORST_COLUMNS, max(4, len(images)))
    rows = -(-len(images) // columns)
    with plt.style.context(STYLE):
        size = (1.6 * columns, 1.9 * rows + 0.4)
        figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
        for ax in axes.flat:
            ax.set_axis_off()
        for ax, image, caption in zip(axes.flat, images, captions, strict=False):
            grey = image.shape[2] == 1
            ax.imshow(image[..., 0] if grey else image, cmap="gray" if grey else None)
            ax.set_title(caption, fontsize=8.5, loc="center", parse_math=False)
        all_shown = len(images) == misclassified
        which = (
            "the most confident first" if all_shown else f"here the {len(images)} most confident"
        )
        heading = f"{misclassified:,} of {total:,} test images are misclassified; {which}"
        figure.suptitle(heading, x=0.01, ha="left", fontsize=11)
    return figure
