"""Eigenvalues of the Hessian and the Gauss-Newton matrix: extreme ones, and their density.

Ghorbani, Krishnan and Xiao, "An investigation into neural net optimization via Hessian eigenvalue
density", 2019 (arXiv:1901.10159); Papyan, "The full spectrum of deepnet Hessians at scale", 2018
(arXiv:1811.07062).
"""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from jax import Array

from deepjax.analysis.core.instrument import instrument
from deepjax.analysis.core.layers import Layers
from deepjax.analysis.core.linear_operator import rademacher
from deepjax.analysis.core.mode import EVAL, Mode
from deepjax.analysis.core.options import Progress
from deepjax.analysis.core.result import Result
from deepjax.analysis.curvature.lanczos import (
    Start,
    Which,
    extreme_eigenpairs,
    lanczos,
    limit_steps,
    partial_progress,
)
from deepjax.analysis.curvature.matrices import (
    MatrixKind,
    MatrixSpec,
    make_matrix,
)
from deepjax.analysis.network.batch import Batches
from deepjax.analysis.network.module import Loss, Model, cross_entropy, stream_key
from deepjax.errors import require

ROUNDING = 1e-6  # relative to the largest eigenvalue: below it a value is float32 rounding
_ORDER = {
    "magnitude": "by magnitude",
    "largest": "from the largest",
    "smallest": "from the smallest",
}


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Eigenvalues(Result):
    """Extreme eigenvalues of a matrix, each with an error bound."""

    matrix: MatrixSpec
    which: Which
    values: np.ndarray
    """(k,), most extreme first."""
    residuals: np.ndarray
    """(k,): |A v - lambda v| for a unit vector v; a true eigenvalue is within this distance."""
    steps: int
    """Products from which the Krylov space was built."""
    vectors: tuple[Any, ...] | None
    """With keep=True the k unit eigenvectors, each a tree like the operator's parameters."""

    def summary(self) -> dict[str, Any]:
        """The extreme eigenvalues and the largest residual."""
        ends = {"first eigenvalue": float(self.values[0]), "last": float(self.values[-1])}
        return ends | {"largest residual": float(self.residuals.max()), "steps": self.steps}

    def rows(self) -> list[dict[str, Any]]:
        """One dict per eigenvalue."""
        pairs = zip(self.values.tolist(), self.residuals.tolist(), strict=True)
        return [
            {"index": index, "eigenvalue": value, "residual": residual}
            for index, (value, residual) in enumerate(pairs, 1)
        ]

    def plot(self, ax: Any = None, title: str | None = None) -> Any:
        """Eigenvalues by rank, with bars as long as their residuals; returns the Axes."""
        from matplotlib.ticker import MaxNLocator

        from deepjax.analysis.plots import COLORS, canvas, format_number

        ranks = np.arange(1, len(self.values) + 1)
        bars: dict[str, Any] = {
            "fmt": "o",
            "color": COLORS[0],
            "ecolor": COLORS[1],
            "capsize": 4,
            "ms": 5,
        }
        with canvas(ax, 5.2, 3.8, title) as axes:
            axes.axhline(0, color="0.5", linewidth=1)
            axes.vlines(ranks, 0, self.values, color=COLORS[0], linewidth=1.4)
            axes.errorbar(ranks, self.values, yerr=self.residuals, **bars)
            worst = format_number(float(self.residuals.max()))
            first = f"$\\lambda_1$ = {format_number(float(self.values[0]))}"
            data = f"{self.matrix.data_text}, errors at most {worst}"
            axes.set_title(f"{self.matrix.short_name}: {first}\n{data}")
            axes.set(xlabel=f"eigenvalue, {_ORDER[self.which]}", ylabel="eigenvalue")
            axes.set_xlim(0.4, len(ranks) + 0.6)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(False, axis="x")
        return axes


@instrument
def top_eigenvalues(
    model: Model,
    variables: Any,
    batch: Batches,
    k: int = 5,
    *,
    loss: Loss = cross_entropy,
    mode: Mode = EVAL,
    layers: Layers = None,
    key: Array | None = None,
    progress: Progress = None,
    operator: MatrixKind = "hessian",
    which: Which = "magnitude",
    steps: int = 80,
    start: Start = "random",
    keep: bool = False,
) -> Eigenvalues:
    """The k eigenvalues of greatest magnitude, or the largest or smallest, by Lanczos' method.

    operator: "hessian", "gauss_newton", "fisher", "empirical_fisher" or "covariance".
    Where a residual is not small relative to its eigenvalue, increase `steps`. Of equal
    eigenvalues only one may be found. start: with "gradient" about 8 steps find the largest of a
    network in training. keep: return the eigenvectors. Other arguments as for `hessian`.
    Raises InputError as `hessian`, for k above the number of steps or parameters, and where the
    curvature is not finite.
    Cost: steps + k products (see `hessian`); memory (steps + k) x parameters.
    Source: Golub and Van Loan, "Matrix computations", 10.1.
    """
    require(
        which in ("magnitude", "largest", "smallest"),
        "which",
        which,
        "'magnitude', 'largest', 'smallest'",
    )
    require(start in ("random", "gradient"), "start", start, "'random', 'gradient'")
    product, data, matrix = make_matrix(
        model, variables, batch, operator=operator, loss=loss, mode=mode, layers=layers, key=key
    )
    values, vectors, residuals, used = extreme_eigenpairs(
        product, data, matrix, k, which, steps, progress, start
    )
    kept = tuple(product.to_tree(data.variables, vector) for vector in vectors) if keep else None
    return Eigenvalues(matrix, which, values, residuals, used, kept)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Density(Result):
    """The eigenvalue density of a matrix, smoothed by a Gaussian."""

    matrix: MatrixSpec
    nodes: np.ndarray
    """(probes, steps): Ritz values, ascending."""
    weights: np.ndarray
    """(probes, steps): fraction of the eigenvalues per node; sums to 1 for each probe."""
    sigma: float
    """Standard deviation of the Gaussian, in units of the eigenvalues."""
    classes: int | None

    @property
    def lambda_max(self) -> float:
        """Largest Ritz value of all probes; no Ritz value exceeds the largest eigenvalue."""
        return float(self.nodes.max())

    @property
    def lambda_min(self) -> float:
        """Smallest Ritz value of all probes."""
        return float(self.nodes.min())

    @property
    def outlier_ratio(self) -> float:
        """lambda_1 / lambda_K for K classes; NaN without classes or for lambda_K not above 0."""
        if self.classes is None or self.classes > self.nodes.shape[1]:
            return math.nan
        last = float(self.nodes[:, -self.classes].max())
        return self.lambda_max / last if last > ROUNDING * np.abs(self.nodes).max() else math.nan

    @property
    def negative_fraction(self) -> float:
        """Fraction of the eigenvalues below -sigma; above it they are indistinguishable from 0."""
        return float(np.where(self.nodes < -self.sigma, self.weights, 0).sum() / len(self.nodes))

    def evaluate(self, points: Any) -> np.ndarray:
        """The density (points,), per unit of eigenvalue; its integral is 1."""
        points = np.asarray(points, float)
        total = np.zeros(len(points))
        # One node at a time: vectorised, this would hold points x nodes numbers.
        for node, weight in zip(self.nodes.ravel(), self.weights.ravel(), strict=True):
            total += weight * np.exp(-(((points - node) / self.sigma) ** 2) / 2)
        return total / (self.sigma * math.sqrt(2 * math.pi) * len(self.nodes))

    def summary(self) -> dict[str, Any]:
        """The range of the eigenvalues, the fraction below 0, and the outlier ratio."""
        numbers = {
            "largest eigenvalue": self.lambda_max,
            "smallest": self.lambda_min,
            "fraction below 0": self.negative_fraction,
            "sigma": self.sigma,
        }
        ratio = {} if self.classes is None else {"outlier ratio": self.outlier_ratio}
        return numbers | ratio

    def rows(self, points: int = 1001) -> list[dict[str, Any]]:
        """One dict per point of an even grid, to 5 sigma beyond the extreme eigenvalues."""
        margin = 5 * self.sigma
        grid = np.linspace(self.lambda_min - margin, self.lambda_max + margin, points)
        return [
            {"eigenvalue": x, "density": y}
            for x, y in zip(grid.tolist(), self.evaluate(grid).tolist(), strict=True)
        ]

    def plot(self, ax: Any = None, title: str | None = None) -> Any:
        """The density down to a tenth of a single eigenvalue's peak, and the extreme eigenvalues.

        Logarithmic; returns the matplotlib Axes.
        """
        from matplotlib.ticker import LogLocator

        from deepjax.analysis.plots import COLORS, canvas

        rows = self.rows(2001)
        x, y = (np.array([row[key] for row in rows]) for key in ("eigenvalue", "density"))
        single = 1 / (self.matrix.parameters * self.sigma * math.sqrt(2 * math.pi))
        floor = single / 10
        shown = np.maximum(y, floor)
        ends = [self.lambda_min, self.lambda_max]
        with canvas(ax, 6.4, 4.0, title) as axes:
            axes.set_yscale("log")
            axes.fill_between(x, floor, shown, color=COLORS[0], alpha=0.25, linewidth=0)
            axes.plot(x, shown, color=COLORS[0], linewidth=1.2)
            axes.axhline(single, color="0.5", linestyle="--", linewidth=1)
            place: dict[str, Any] = {
                "ha": "right",
                "va": "bottom",
                "transform": axes.get_yaxis_transform(),
                "bbox": {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 0.5},
            }
            axes.text(0.99, single, "one eigenvalue", color="0.4", **place)
            axes.axvline(0, color="0.7", linewidth=0.8, zorder=0)
            axes.plot(ends, [floor] * 2, "^", color=COLORS[1], ms=6, clip_on=False, zorder=4)
            axes.set_title(self._title())
            axes.set(xlabel="eigenvalue", ylabel="density")
            axes.set(xlim=(x[0], x[-1]), ylim=(floor, 3 * y.max()))
            axes.yaxis.set_major_locator(LogLocator(numticks=8))
        return axes

    def _title(self) -> str:
        from deepjax.analysis.plots import format_number, format_percent

        largest = f"$\\lambda_{{max}}$ = {format_number(self.lambda_max)}"
        smallest = f"$\\lambda_{{min}}$ = {format_number(self.lambda_min)}"
        ratio = f", $\\lambda_1/\\lambda_{{{self.classes}}}$ = {self.outlier_ratio:.3g}"
        ratio = "" if math.isnan(self.outlier_ratio) else ratio
        below = f"{format_percent(self.negative_fraction)} below 0"
        first = f"{self.matrix.short_name}: {largest}, {smallest}{ratio}"
        return f"{first}\n{self.matrix.data_text}, {below}"


@instrument
def spectral_density(
    model: Model,
    variables: Any,
    batch: Batches,
    *,
    loss: Loss = cross_entropy,
    mode: Mode = EVAL,
    layers: Layers = None,
    key: Array | None = None,
    progress: Progress = None,
    operator: MatrixKind = "hessian",
    classes: int | None = None,
    steps: int = 90,
    probes: int = 10,
    sigma: float | None = None,
) -> Density:
    """The eigenvalue density by stochastic Lanczos quadrature from `probes` random sign vectors.

    classes: K of the outlier ratio. sigma: of the Gaussian, in units of the eigenvalues; default
    sqrt(1e-5) = 0.32 % of the range from smallest to largest. (The reference code takes a variance
    of 1e-5 of the range: the same at range 1, but dependent on the unit of the loss.) All steps of
    a probe use the same batches. Other arguments as for `hessian`.
    Raises InputError as `hessian`, for no steps or probes, a sigma that is not above 0, and where
    the curvature is not finite.
    Cost: steps x probes products (see `hessian`); memory steps x parameters.
    Source: Ghorbani et al. 2019, section 2 and appendix (90 steps, 10 probes, variance 1e-5);
    Yao et al. 2020, algorithm 3.
    """
    require(isinstance(probes, int) and probes >= 1, "probes", probes, "1 or more")
    require(sigma is None or sigma > 0, "sigma", sigma, "None, or above 0")
    require(classes is None or classes >= 1, "classes", classes, "None, or 1 or more")
    product, data, matrix = make_matrix(
        model, variables, batch, operator=operator, loss=loss, mode=mode, layers=layers, key=key
    )
    steps = limit_steps(steps, matrix)
    like, _ = product.flat(data.variables)
    signs, again = (stream_key(data.key, name) for name in ("probes", "restart"))
    nodes, weights = np.empty((probes, steps)), np.empty((probes, steps))
    for probe in range(probes):
        start = rademacher(signs, probe, like)
        own = jax.random.fold_in(again, probe)
        report = partial_progress(progress, probe * steps, probes * steps)
        krylov = lanczos(product, data, start, steps, own, report)
        nodes[probe], vectors = np.linalg.eigh(krylov.tridiagonal)
        weights[probe] = np.square(vectors[0])
    spread = float(nodes.max() - nodes.min()) or float(np.abs(nodes).max()) or 1.0
    return Density(matrix, nodes, weights, sigma or math.sqrt(1e-5) * spread, classes)
