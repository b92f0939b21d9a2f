"""Sharpness along training: the largest eigenvalue of the Hessian against the edge of stability.

Cohen, Kaur, Li, Kolter and Talwalkar, "Gradient descent on neural networks typically occurs at the
edge of stability", 2021 (arXiv:2103.00065).
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from deepjax.analysis.core.result import Result
from deepjax.errors import InputError, require


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class SharpnessPath(Result):
    """The largest eigenvalue of the Hessian at some steps of a training."""

    steps: np.ndarray
    """(points,): number of the training step."""
    lambda_max: np.ndarray
    """(points,): the largest eigenvalue."""
    edge: np.ndarray
    """(points,): the eigenvalue above which the optimizer is unstable; NaN where it is unknown."""

    @property
    def fraction_above(self) -> float:
        """Fraction of the points above their edge, of those that have one; NaN without any."""
        known = ~np.isnan(self.edge)
        return float((self.lambda_max > self.edge)[known].mean()) if known.any() else float("nan")

    def summary(self) -> dict[str, Any]:
        """First, largest and last eigenvalue, the last edge, and the fraction above the edge."""
        return {
            "first": float(self.lambda_max[0]),
            "largest": float(self.lambda_max.max()),
            "last": float(self.lambda_max[-1]),
            "last edge": float(self.edge[-1]),
            "fraction above the edge": self.fraction_above,
        }

    def rows(self) -> list[dict[str, Any]]:
        """One plain dict per point."""
        columns = (self.steps.tolist(), self.lambda_max.tolist(), self.edge.tolist())
        return [
            {"step": step, "lambda_max": value, "edge": edge}
            for step, value, edge in zip(*columns, strict=True)
        ]

    def plot(self, ax: Any = None, title: str | None = None) -> Any:
        """The eigenvalue and the edge against the step; returns the matplotlib Axes."""
        from deepjax.analysis.plots import COLORS, canvas, format_percent, plain_log_ticks

        finding = f"Sharpness from {self.lambda_max[0]:.3g} to {self.lambda_max[-1]:.3g}"
        lowest, highest = self.lambda_max.min(), self.lambda_max.max()
        above = self.fraction_above
        if not np.isnan(above):
            finding += f", {format_percent(above)} of the points above the edge"
        with canvas(ax, 5.8, 3.8, title) as axes:
            axes.plot(
                self.steps, self.lambda_max, "o-", color=COLORS[0], label="largest eigenvalue"
            )
            if not np.isnan(above):
                axes.plot(self.steps, self.edge, "--", color=COLORS[1], label="edge of stability")
                axes.legend()
            if 0 < 10 * lowest < highest:
                axes.set_yscale("log")
                plain_log_ticks(axes)
            axes.set_title(finding)
            axes.set(xlabel="training step", ylabel="eigenvalue of the Hessian")
        return axes


def sharpness_path(
    steps: Sequence[int], lambda_max: Sequence[float], edge: Sequence[float] | float | None = None
) -> SharpnessPath:
    """Values that were logged during training, for a figure.

    lambda_max: `top_eigenvalues(..., 1, which="largest", start="gradient", steps=8).values[0]` at
    these steps. edge: `edge_of_stability(...)`, one number or one for each step; None if unknown.
    Raises InputError for lists of different lengths and for steps that do not increase.
    """
    require(len(steps) >= 1, "steps", "empty", "one step or more")
    require(bool((np.diff(steps) > 0).all()), "steps", list(steps), "increasing numbers")
    limits = np.nan if edge is None else edge
    given = {"lambda_max": np.asarray(lambda_max, float), "edge": np.asarray(limits, float)}
    for name, values in given.items():
        fits = values.shape == (len(steps),) or (name == "edge" and values.ndim == 0)
        require(
            fits, name, f"of shape {values.shape}", f"one number for each of {len(steps)} steps"
        )
    edges = np.broadcast_to(given["edge"], len(steps))
    return SharpnessPath(np.asarray(steps), given["lambda_max"], edges)


def logged_sharpness(rows: Iterable[Mapping[str, Any]]) -> SharpnessPath:
    """Sharpness of a training run, from the rows of its metrics.jsonl.

    Uses the rows that `--probe-every K --probe sharpness` (or "full", which has no edge) writes.
    Raises InputError where there are none.
    """
    found = {
        row["step"]: row["curvature_and_noise"]
        for row in rows
        if "lambda_max" in row.get("curvature_and_noise", {})
    }
    if not found:
        raise InputError("rows without sharpness; allowed: those of a run with --probe sharpness")
    steps = sorted(found)
    limits = [found[step].get("edge_of_stability", np.nan) for step in steps]
    return sharpness_path(steps, [found[step]["lambda_max"] for step in steps], limits)


def edge_of_stability(learning_rate: float, momentum: float = 0.0, nesterov: bool = False) -> float:
    """The eigenvalue of the Hessian above which gradient descent on a quadratic diverges.

    2 / learning_rate without momentum. Source: Cohen et al. 2021, section 2 and appendix B.
    """
    lookahead = 1 + 2 * momentum if nesterov else 1
    return 2 * (1 + momentum) / (learning_rate * lookahead)
