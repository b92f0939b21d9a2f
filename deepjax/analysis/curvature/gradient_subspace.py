"""How much of the gradient lies in the space of the top eigenvectors.

Gur-Ari, Roberts and Dyer, "Gradient descent happens in a tiny subspace", 2018 (arXiv:1812.04754).
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from deepjax.analysis.core.batch import Batches
from deepjax.analysis.core.module import Loss, cross_entropy
from deepjax.analysis.core.options import BatchStatistics, Progress
from deepjax.analysis.curvature.lanczos import extreme_eigenpairs, norm
from deepjax.analysis.curvature.operators import (
    Layers,
    MatrixKind,
    MatrixSpec,
    Operator,
    make_operator,
)


@dataclasses.dataclass(frozen=True, eq=False)
class GradientSubspace:
    """The fraction of the squared gradient in the space of a matrix's top eigenvectors."""

    matrix: MatrixSpec
    eigenvalues: np.ndarray
    """(k,), largest first."""
    residuals: np.ndarray
    """(k,), as in `Eigenvalues`."""
    fractions: np.ndarray
    """(k,): of the squared gradient, in the first 1, 2, ..., k eigenvectors; NaN if it is 0."""
    gradient_norm: float

    @property
    def fraction(self) -> float:
        """The fraction in all k eigenvectors."""
        return float(self.fractions[-1])

    @property
    def random_fraction(self) -> float:
        """The expected fraction of a random direction: k / parameters."""
        return len(self.fractions) / self.matrix.parameters

    def rows(self) -> list[dict[str, Any]]:
        """One dict per eigenvector."""
        columns = (self.eigenvalues, self.residuals, self.fractions)
        lines = zip(*(column.tolist() for column in columns), strict=True)
        return [
            {"index": index, "eigenvalue": value, "residual": residual, "fraction": fraction}
            for index, (value, residual, fraction) in enumerate(lines, 1)
        ]

    def plot(self, ax: Any = None) -> Any:
        """Fraction by number of eigenvectors, and that of a random direction; returns the Axes."""
        from matplotlib.ticker import MaxNLocator, PercentFormatter

        from deepjax.analysis.plots import COLORS, canvas, format_percent

        ranks, parameters = np.arange(1, len(self.fractions) + 1), self.matrix.parameters
        line: dict[str, Any] = {"color": COLORS[0], "ms": 4, "clip_on": False, "zorder": 3}
        with canvas(ax, 5.2, 3.8) as axes:
            axes.plot(ranks, self.fractions, "o-", **line)
            axes.plot(ranks, ranks / parameters, "--", color="0.5", linewidth=1.2)
            place: dict[str, Any] = {"color": "0.4", "ha": "right", "va": "bottom"}
            axes.text(ranks[-1], self.random_fraction + 0.015, "a random direction", **place)
            top = f"the top {len(ranks)} of {parameters:,} directions"
            title = f"{format_percent(self.fraction)} of the squared gradient in {top}"
            axes.set_title(f"{title}\n{self.matrix.short_name}, {self.matrix.data_text}")
            axes.set_xlabel("eigenvectors, from the largest eigenvalue")
            axes.set_ylabel("fraction of the squared gradient")
            axes.set_ylim(0, 1)
            axes.yaxis.set_major_formatter(PercentFormatter(1))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return axes


def gradient_subspace_overlap(
    model: nn.Module,
    variables: Any,
    batch: Batches,
    k: int = 10,
    *,
    operator: MatrixKind = "hessian",
    layers: Layers = None,
    bn: BatchStatistics = "running",
    loss: Loss = cross_entropy,
    steps: int = 80,
    seed: int = 0,
    progress: Progress = None,
) -> GradientSubspace:
    """The fraction of the squared gradient norm in the span of the k top eigenvectors.

    The gradient is of the same loss, batches and parameters as the matrix. Arguments and errors
    as for `top_eigenvalues`. Cost: steps + k products and one gradient; memory (steps + k) x
    parameters. Source: Gur-Ari et al. 2018, section 2; Ghorbani et al. 2019, section 4.
    """
    product, data, matrix = make_operator(model, variables, batch, operator, layers, bn, loss)
    values, vectors, residuals, _ = extreme_eigenpairs(
        product, data, matrix, k, "largest", steps, seed, progress
    )
    parts, length = jax.device_get(_project_gradient(data, vectors, product=product))
    fractions = np.full(k, math.nan)
    if length > 0:
        fractions = np.cumsum(np.square(parts, dtype=float)) / float(length) ** 2
    return GradientSubspace(matrix, values, residuals, np.minimum(fractions, 1), float(length))


@functools.partial(jax.jit, static_argnames=("product",))
def _project_gradient(data: Any, vectors: Array, *, product: Operator) -> tuple[Array, Array]:
    """(components of the gradient along the vectors, its norm)."""
    gradient = product.gradient(data)
    return jnp.matmul(vectors, gradient, precision="highest"), norm(gradient)
