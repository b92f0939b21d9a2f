"""The result of `ntk`: a kernel, its eigenvalues and its figure."""

import dataclasses
import functools
import math
from typing import Any, Literal

import numpy as np

from deepjax.analysis.core.mode import Mode
from deepjax.analysis.core.result import Result
from deepjax.analysis.network.batch import data_text
from deepjax.errors import require

Output = Literal["mean", "trace", "full"]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TangentKernel(Result):
    """The empirical neural tangent kernel.

    Inner products of the gradients of a network's outputs at pairs of inputs.
    """

    matrix: np.ndarray
    """(n, m), or (n, m, k, k) with output="full"; float64, computed in float32 (or in float64
    where the parameters are)."""
    output: Output
    outputs: int
    """k: number of outputs per example."""
    parameters: int
    """Number of real numbers, two for a complex parameter."""
    layers: tuple[str, ...] | None
    """Modules whose parameters' gradients are multiplied; None: all."""
    symmetric: bool
    """Whether rows and columns are the same inputs, so that there are eigenvalues."""
    eps: float
    """Relative rounding of the dtype of the computation."""
    mode: Mode
    mode_text: str
    """How the network was set to that mode, and what it samples and writes in evaluation."""
    has_batch_norm: bool

    @property
    def flattened(self) -> np.ndarray:
        """(n, m), or (n k, m k) with the outputs of an example next to each other."""
        if self.output != "full":
            return self.matrix
        n, m, k, _ = self.matrix.shape
        return self.matrix.transpose(0, 2, 1, 3).reshape(n * k, m * k)

    @functools.cached_property
    def eigenvalues(self) -> np.ndarray:
        """(n,) or (n k,), descending; raises InputError for a kernel between two sets of inputs."""
        require(
            self.symmetric,
            "kernel",
            "between two sets of inputs, which has no eigenvalues",
            "a kernel of one set",
        )
        return np.linalg.eigvalsh(self.flattened)[::-1]

    @property
    def condition(self) -> float:
        """Condition number; infinite where the smallest eigenvalue is within rounding of 0.

        About the number of gradient descent steps that the slowest direction needs (Xiao et al.
        2020, arXiv:1912.13053, section 2).
        """
        values = self.eigenvalues
        return float(values[0] / values[-1]) if values[-1] > self.rounding else math.inf

    @property
    def rounding(self) -> float:
        """Eigenvalues up to this value are indistinguishable from 0."""
        return len(self.eigenvalues) * self.eps * float(self.eigenvalues[0])

    def summary(self) -> dict[str, Any]:
        """The mean of the diagonal, the condition number and the first eigenvalue's fraction.

        Between two sets of inputs the mean of all entries.
        """
        sizes = {"examples": self.matrix.shape[0], "outputs": self.outputs}
        if not self.symmetric:
            return {"mean": float(self.flattened.mean()), **sizes, "others": self.matrix.shape[1]}
        return {
            "mean of the diagonal": float(np.diag(self.flattened).mean()),
            "condition": self.condition,
            "first eigenvalue's fraction": float(self.eigenvalues[0] / self.eigenvalues.sum()),
            **sizes,
        }

    def rows(self) -> list[dict[str, Any]]:
        """One dict per eigenvalue; for two sets of inputs per pair, averaged over outputs."""
        if self.symmetric:
            fractions = self.eigenvalues / self.eigenvalues.sum()
            columns = zip(self.eigenvalues.tolist(), fractions.tolist(), strict=True)
            return [
                {"rank": rank, "eigenvalue": value, "fraction": fraction}
                for rank, (value, fraction) in enumerate(columns, 1)
            ]
        means = self.matrix
        if self.output == "full":
            means = np.trace(self.matrix, axis1=2, axis2=3) / self.outputs
        return [
            {"row": i, "column": j, "kernel": float(value)}
            for (i, j), value in np.ndenumerate(means)
        ]

    def plot(self, ax: Any = None, title: str | None = None) -> Any:
        """The eigenvalues by rank; for two sets of inputs the matrix. Returns the Axes."""
        draw = self._plot_eigenvalues if self.symmetric else self._plot_matrix
        return draw(ax, title)

    def _plot_eigenvalues(self, ax: Any, title: str | None) -> Any:
        from matplotlib.ticker import MaxNLocator

        from deepjax.analysis.plots import COLORS, canvas, plain_log_ticks

        values = self.eigenvalues
        rank, known = np.arange(1, len(values) + 1), values > self.rounding
        with canvas(ax, 5.4, 3.9, title) as axes:
            axes.set_yscale("log")
            axes.plot(rank[known], values[known], "o-", color=COLORS[0], ms=3.5)
            if not known.all():
                axes.axhline(self.rounding, color="0.5", linestyle="--", linewidth=1)
                label = f"{(~known).sum()} more, below rounding"
                place: dict[str, Any] = {
                    "ha": "right",
                    "va": "bottom",
                    "transform": axes.get_yaxis_transform(),
                }
                axes.text(0.99, self.rounding, label, color="0.4", **place)
            axes.set_title(self._title())
            axes.set(xlabel="rank", ylabel="eigenvalue")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            plain_log_ticks(axes)
        return axes

    def _title(self) -> str:
        from deepjax.analysis.plots import format_number, format_percent

        condition = "singular but for rounding"
        if math.isfinite(self.condition):
            condition = f"condition {format_number(self.condition)}"
        first = format_percent(float(self.eigenvalues[0] / self.eigenvalues.sum()))
        outputs = f"{self.outputs} output{'s' * (self.outputs > 1)}"
        examples = data_text(self.matrix.shape[0], self.mode, self.has_batch_norm)
        data = f"{examples}, {outputs}, {self.parameters:,} parameters"
        return f"Tangent kernel: {condition}, {first} in the first eigenvector\n{data}"

    def _plot_matrix(self, ax: Any, title: str | None) -> Any:
        from deepjax.analysis.plots import canvas, format_number

        matrix = self.flattened
        limit = float(np.abs(matrix).max()) or 1.0
        style: dict[str, Any] = {"cmap": "RdBu_r", "interpolation": "nearest", "aspect": "auto"}
        with canvas(ax, 5.0, 4.2, title) as axes:
            image = axes.imshow(matrix, vmin=-limit, vmax=limit, **style)
            axes.figure.colorbar(image, ax=axes, shrink=0.85, label="kernel")
            unit = " x output" if self.output == "full" else ""
            mean = format_number(float(matrix.mean()))
            axes.set_title(f"Tangent kernel between two sets: mean {mean}")
            axes.set(xlabel=f"other example{unit}", ylabel=f"example{unit}")
            axes.grid(False)
        return axes
