"""The result of `path_lengths`: the distribution of a gradient over path lengths, as a figure."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from deepjax.analysis.core.mode import Mode
from deepjax.analysis.core.result import Result
from deepjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class PathLength:
    """All paths that take the branch at exactly `length` sums."""

    length: int
    paths: int
    """Number of such paths: n choose length."""
    sampled: int
    norm: float
    """Mean over the sampled paths of the L2 norm of the loss's gradient with respect to the inputs
    of all examples, along one path."""
    standard_error: float
    """Of the norm; 0 if all paths were taken, NaN if one of several was sampled."""
    fraction: float
    """paths x norm, divided by the sum of that over all lengths."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class PathLengths(Result):
    """Distribution of the gradient over path lengths."""

    sums: tuple[str, ...]
    """Paths of the residual sums in the order of the forward pass."""
    gradient_norm: float
    """L2 norm of the full gradient with respect to the inputs, of the sum over all paths, which may
    cancel."""
    lengths: tuple[PathLength, ...]
    """0 to n branches."""
    mode: Mode
    mode_text: str
    """How the network was set to that mode, and what it samples and writes in evaluation."""
    data_text: str
    """Number of examples, and kind of batch statistics."""

    @property
    def mean_length(self) -> float:
        """Mean length, weighted by the fraction of the gradient."""
        return sum(row.length * row.fraction for row in self.lengths)

    @property
    def interval(self) -> tuple[int, int]:
        """Shortest and longest length of the central 95 % of the gradient."""
        sums = np.cumsum([row.fraction for row in self.lengths])
        low, high = np.searchsorted(sums, [0.025, 0.975])
        return int(low), min(int(high), len(self.sums))

    @property
    def fraction_of_paths(self) -> float:
        """Fraction of all paths whose length is in the interval."""
        low, high = self.interval
        return sum(row.paths for row in self.lengths[low : high + 1]) / 2 ** len(self.sums)

    def summary(self) -> dict[str, Any]:
        """Number of sums, and which lengths carry the gradient."""
        low, high = self.interval
        return {
            "sums": len(self.sums),
            "gradient norm": self.gradient_norm,
            "mean length": self.mean_length,
            "95 % from": low,
            "to": high,
            "fraction of paths": self.fraction_of_paths,
        }

    def rows(self) -> list[dict[str, Any]]:
        """One plain dict per length."""
        return [dataclasses.asdict(row) for row in self.lengths]

    def plot(self, ax: Any = None, title: str | None = None) -> Any:
        """Number of paths by length, gradient norm of one path, and their product (Figure 6).

        Returns the matplotlib Axes.
        """
        from matplotlib.ticker import MaxNLocator

        from deepjax.analysis.plots import COLORS, canvas

        lengths = [row.length for row in self.lengths]
        paths = [row.paths / 2 ** len(self.sums) for row in self.lengths]
        norms = np.array([row.norm for row in self.lengths])
        fractions = np.array([row.fraction for row in self.lengths])
        errors = [row.standard_error for row in self.lengths]
        error = fractions * np.divide(errors, norms, out=np.zeros_like(norms), where=norms > 0)
        low, high = self.interval
        span = f"{low} to {high}" if low < high else f"{low}"
        finding = (
            f"95 % of the gradient takes {span} of {len(self.sums)} branches, "
            f"{self.mean_length:.1f} on average"
        )
        blue, red = COLORS[:2]
        with canvas(ax, 6.0, 4.0, title) as axes:
            axes.axvspan(low - 0.5, high + 0.5, color=blue, alpha=0.08, linewidth=0)
            label = "fraction of the paths"
            axes.plot(lengths, paths, "s--", color="0.5", markersize=3.5, label=label)
            label = "fraction of the gradient"
            axes.plot(lengths, fractions, "o-", color=blue, markersize=4, label=label)
            bottom, top = np.maximum(fractions - error, 0), fractions + error
            axes.vlines(lengths, bottom, top, color=blue, linewidth=1, alpha=0.6)
            right = axes.twinx()
            right.set_yscale("log")
            shown, label = np.where(norms > 1e-30, norms, np.nan), "gradient of one path"
            right.plot(lengths, shown, "^:", color=red, markersize=4, label=label)
            right.set_ylabel("gradient norm of one path", color=red)
            right.tick_params(axis="y", which="both", colors=red)
            right.spines["right"].set_visible(True)
            right.grid(False)
            axes.set_title(f"{finding}\n{self.data_text}")
            axes.set(xlabel="branches on the path", ylabel="fraction", ylim=(0, None))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            lines = [*axes.lines, *right.lines]
            below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16), "ncols": 3}
            labels = [str(line.get_label()) for line in lines]
            axes.legend(lines, labels, columnspacing=1.2, **below)
        return axes


def length_rows(norms: Sequence[np.ndarray]) -> tuple[PathLength, ...]:
    """The rows from the norms of the sampled paths, for each length.

    Raises InputError where they are not finite or all 0.
    """
    longest = len(norms) - 1
    counts = [math.comb(longest, length) for length in range(longest + 1)]
    means = [float(values.mean()) for values in norms]
    invalid = [length for length, mean in enumerate(means) if not math.isfinite(mean)]
    if invalid or not any(means):
        problem = (
            f"paths of {invalid[0]} branches carry a gradient that is not finite"
            if invalid
            else "no path carries any gradient"
        )
        raise InputError(f"{problem} to the inputs; allowed: a network and a loss that have one")
    # By logarithms: from a thousand sums on the number of paths exceeds any float.
    logs = [
        math.log(n) + math.log(mean) if mean > 0 else -math.inf
        for n, mean in zip(counts, means, strict=True)
    ]
    sizes = np.exp(np.array(logs) - max(logs))
    fractions = sizes / sizes.sum()
    return tuple(
        PathLength(
            length=length,
            paths=counts[length],
            sampled=len(norms[length]),
            norm=means[length],
            standard_error=_standard_error(norms[length], counts[length]),
            fraction=float(fractions[length]),
        )
        for length in range(longest + 1)
    )


def _standard_error(values: np.ndarray, paths: int) -> float:
    if len(values) == paths:
        return 0.0
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
