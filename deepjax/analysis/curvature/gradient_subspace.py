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
from jax import Array

from deepjax.analysis.core.instrument import instrument
from deepjax.analysis.core.layers import Layers
from deepjax.analysis.core.mode import EVAL, Mode
from deepjax.analysis.core.options import Progress
from deepjax.analysis.core.result import Result
from deepjax.analysis.curvature.lanczos import extreme_eigenpairs, norm
from deepjax.analysis.curvature.matrices import (
    MatrixData,
    MatrixKind,
    MatrixProduct,
    MatrixSpec,
    make_matrix,
)
from deepjax.analysis.network.batch import Batches
from deepjax.analysis.network.module import Loss, Model, cross_entropy
from deepjax.backend.conv_layouts import canonicalize_conv_layouts


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class GradientSubspace(Result):
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

    def summary(self) -> dict[str, Any]:
        """The fraction in all eigenvectors, that of a random direction, and the gradient's norm."""
        return {
            "fraction of the squared gradient": self.fraction,
            "of a random direction": self.random_fraction,
            "gradient norm": self.gradient_norm,
        }

    def rows(self) -> list[dict[str, Any]]:
        """One dict per eigenvector."""
        columns = (self.eigenvalues, self.residuals, self.fractions)
        lines = zip(*(column.tolist() for column in columns), strict=True)
        return [
            {"index": index, "eigenvalue": value, "residual": residual, "fraction": fraction}
            for index, (value, residual, fraction) in enumerate(lines, 1)
        ]

    def plot(self, ax: Any = None, title: str | None = None) -> Any:
        """Fraction by number of eigenvectors, and that of a random direction; returns the Axes."""
        from matplotlib.ticker import MaxNLocator, PercentFormatter

        from deepjax.analysis.plots import COLORS, canvas, format_percent

        ranks, parameters = np.arange(1, len(self.fractions) + 1), self.matrix.parameters
        line: dict[str, Any] = {"color": COLORS[0], "ms": 4, "clip_on": False, "zorder": 3}
        with canvas(ax, 5.2, 3.8, title) as axes:
            axes.plot(ranks, self.fractions, "o-", **line)
            axes.plot(ranks, ranks / parameters, "--", color="0.5", linewidth=1.2)
            place: dict[str, Any] = {"color": "0.4", "ha": "right", "va": "bottom"}
            axes.text(ranks[-1], self.random_fraction + 0.015, "a random direction", **place)
            top = f"the top {len(ranks)} of {parameters:,} directions"
            finding = f"{format_percent(self.fraction)} of the squared gradient in {top}"
            axes.set_title(f"{finding}\n{self.matrix.short_name}, {self.matrix.data_text}")
            axes.set_xlabel("eigenvectors, from the largest eigenvalue")
            axes.set_ylabel("fraction of the squared gradient")
            axes.set_ylim(0, 1)
            axes.yaxis.set_major_formatter(PercentFormatter(1))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return axes


@instrument
def gradient_subspace_overlap(
    model: Model,
    variables: Any,
    batch: Batches,
    k: int = 10,
    *,
    loss: Loss = cross_entropy,
    mode: Mode = EVAL,
    layers: Layers = None,
    key: Array | None = None,
    progress: Progress = None,
    operator: MatrixKind = "hessian",
    steps: int = 80,
) -> GradientSubspace:
    """The fraction of the squared gradient norm in the span of the k top eigenvectors.

    The gradient is of the same loss, batches and parameters as the matrix. Arguments and errors
    as for `top_eigenvalues`. Cost: steps + k products and one gradient; memory (steps + k) x
    parameters. Source: Gur-Ari et al. 2018, section 2; Ghorbani et al. 2019, section 4.
    """
    product, data, matrix = make_matrix(
        model, variables, batch, operator=operator, loss=loss, mode=mode, layers=layers, key=key
    )
    values, vectors, residuals, _ = extreme_eigenpairs(
        product, data, matrix, k, "largest", steps, progress
    )
    parts, length = jax.device_get(_project_gradient(data, vectors, product=product))
    fractions = np.full(k, math.nan)
    if length > 0:
        fractions = np.cumsum(np.square(parts, dtype=float)) / float(length) ** 2
    return GradientSubspace(matrix, values, residuals, np.minimum(fractions, 1), float(length))


@functools.partial(jax.jit, static_argnames=("product",))
@canonicalize_conv_layouts
def _project_gradient(
    data: MatrixData, vectors: Array, *, product: MatrixProduct
) -> tuple[Array, Array]:
    """(components of the gradient along the vectors, its norm)."""
    gradient = product.gradient(data)
    return jnp.matmul(vectors, gradient, precision="highest"), norm(gradient)
