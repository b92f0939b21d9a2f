"""The figures of lesions and of path lengths; one Axes each."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from deepjax.analysis.plots import COLORS, canvas, layer_ticks
from deepjax.analysis.residual.lesions import Lesions, PathLengths

FEWEST = 1e-30


def draw_lesions(found: Lesions, ax: Any = None) -> Axes:
    """The error without each block in the order of the forward pass, and the whole network's."""
    names = _short([lesion.removed[0] for lesion in found.blocks])
    errors = np.array([lesion.error for lesion in found.blocks])
    worst = int(errors.argmax())
    with canvas(ax, 6.4, 4.0) as axes:
        axes.axhline(found.error, color="0.5", linestyle="--", linewidth=1)
        axes.vlines(
            range(len(names)), found.error, errors, color=COLORS[0], linewidth=1.2, alpha=0.6
        )
        axes.plot(range(len(names)), errors, "o", color=COLORS[0], markersize=4.5)
        whole = f"dashed: with all {len(names)}, {found.error:.3g}"
        axes.text(0.98, 0.96, whole, color="0.4", ha="right", va="top", transform=axes.transAxes)
        median, most = np.median(errors - found.error), errors[worst] - found.error
        what = "branch" if found.kind == "branch" else "module"
        axes.set_title(
            f"Without one {what}: error {median:+.2g} in the median, {most:+.2g} at most ({names[worst]})"
        )
        axes.set(ylabel="error", ylim=_limits([found.error, *errors]), xlabel=f"{what} removed")
        layer_ticks(axes, names)
    return axes


def draw_several(found: Lesions, ax: Any = None) -> Axes:
    """The error of every lesion against the number of blocks removed, and the mean."""
    lesions = (*found.blocks, *found.several)
    counts = np.array([0, *(len(lesion.removed) for lesion in lesions)])
    errors = np.array([found.error, *(lesion.error for lesion in lesions)])
    places = np.unique(counts)
    means = [errors[counts == count].mean() for count in places]
    with canvas(ax, 5.2, 3.8) as axes:
        axes.plot(
            counts,
            errors,
            "o",
            color=COLORS[0],
            alpha=0.3,
            markersize=4,
            markeredgewidth=0,
            label="one set",
        )
        axes.plot(places, means, "o-", color=COLORS[0], markersize=5, label="mean")
        what = {"branch": "branches", "module": "modules"}[found.kind]
        last = f"{places[-1]} of {len(found.blocks)} {what} removed: error {means[-1]:.3g}"
        axes.set(
            title=f"{last}, from {found.error:.3g}",
            xlabel=f"{what} removed",
            ylabel="error",
            ylim=_limits(errors),
        )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend()
    return axes


def draw_path_lengths(found: PathLengths, ax: Any = None) -> Axes:
    """Shares of paths and of the gradient by length, and on a logarithmic axis to the right what one path carries."""
    lengths = [row.length for row in found.lengths]
    paths = [row.paths / 2 ** len(found.sums) for row in found.lengths]
    norms = np.array([row.norm for row in found.lengths])
    low, high = found.interval
    with canvas(ax, 6.0, 4.0) as axes:
        axes.axvspan(low - 0.5, high + 0.5, color=COLORS[0], alpha=0.08, linewidth=0)
        axes.plot(lengths, paths, "s--", color="0.5", markersize=3.5, label="share of the paths")
        share = np.array([row.share for row in found.lengths])
        error = share * np.divide(
            [row.error for row in found.lengths], norms, out=np.zeros_like(norms), where=norms > 0
        )
        axes.plot(
            lengths, share, "o-", color=COLORS[0], markersize=4, label="share of the gradient"
        )
        axes.vlines(
            lengths,
            np.maximum(share - error, 0),
            share + error,
            color=COLORS[0],
            linewidth=1,
            alpha=0.6,
        )
        right = axes.twinx()
        right.set_yscale("log")
        right.plot(
            lengths,
            np.where(norms > FEWEST, norms, np.nan),
            "^:",
            color=COLORS[1],
            markersize=4,
            label="gradient of one path",
        )
        right.set_ylabel("gradient norm of one path", color=COLORS[1])
        right.tick_params(axis="y", colors=COLORS[1])
        right.spines["right"].set_visible(True)
        right.grid(False)
        span = f"{low} to {high}" if low < high else f"{low}"
        title = f"95 % of the gradient takes {span} of {len(found.sums)} branches, {found.effective:.1f} on average"
        axes.set(title=title, xlabel="branches on the path", ylabel="share", ylim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        lines = [*axes.lines, *right.lines]
        axes.legend(
            lines,
            [str(line.get_label()) for line in lines],
            loc="upper center",
            bbox_to_anchor=(0.5, -0.16),
            ncols=3,
            columnspacing=1.2,
        )
    return axes


def _short(names: Sequence[str]) -> list[str]:
    """Without the last part where all have the same, as "stage1_block1/sum"."""
    parts = [name.rpartition("/") for name in names]
    common = all(head for head, _, _ in parts) and len({last for _, _, last in parts}) == 1
    return [head for head, _, _ in parts] if common else list(names)


def _limits(values: Any) -> tuple[float, float]:
    low, high = float(np.min(values)), float(np.max(values))
    room = 0.12 * (high - low) or 0.1
    return (max(0.0, low - room) if low >= 0 else low - room), high + room
