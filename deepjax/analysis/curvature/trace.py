"""The trace of the Hessian or Gauss-Newton matrix by Hutchinson's estimator.

Hutchinson, "A stochastic estimator of the trace of the influence matrix for Laplacian smoothing
splines", 1990; Yao, Gholami, Keutzer and Mahoney, "PyHessian: neural networks through the lens of
the Hessian", 2020 (arXiv:1912.07145).
"""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from deepjax.analysis.core.batch import Batches
from deepjax.analysis.core.module import Loss, cross_entropy
from deepjax.analysis.core.options import BatchStatistics, Progress
from deepjax.analysis.curvature.operators import (
    Layers,
    MatrixKind,
    MatrixSpec,
    apply,
    check_finite,
    make_operator,
    rademacher,
)
from deepjax.errors import require


@dataclasses.dataclass(frozen=True, eq=False)
class HessianTrace:
    """An estimate of the trace, which is the sum of the eigenvalues."""

    matrix: MatrixSpec
    trace: float
    error: float
    """Standard error; 0 for a diagonal matrix, NaN for one probe."""
    estimates: tuple[float, ...]
    """One per probe."""

    @property
    def mean_eigenvalue(self) -> float:
        """The trace divided by the number of parameters."""
        return self.trace / self.matrix.parameters

    def rows(self) -> list[dict[str, Any]]:
        """One dict per probe: its estimate, and trace and standard error up to this probe."""
        found = []
        for count, estimate in enumerate(self.estimates, 1):
            trace, error = _mean_and_error(self.estimates[:count])
            found.append({"probe": count, "estimate": estimate, "trace": trace, "error": error})
        return found

    def plot(self, ax: Any = None) -> Any:
        """Estimates of the probes, and their running mean with its standard error.

        Returns the matplotlib Axes.
        """
        from matplotlib.ticker import MaxNLocator

        from deepjax.analysis.plots import COLORS, canvas, format_number

        rows = self.rows()
        probes, estimates, means, errors = (
            np.array([row[key] for row in rows]) for key in ("probe", "estimate", "trace", "error")
        )
        low, high = (means - errors)[1:], (means + errors)[1:]
        with canvas(ax, 5.2, 3.8) as axes:
            axes.plot(probes, estimates, ".", color="0.7", label="one probe")
            axes.plot(probes, means, color=COLORS[0], label="mean so far")
            axes.fill_between(probes[1:], low, high, color=COLORS[0], alpha=0.2, linewidth=0)
            error = f" ± {format_number(self.error)}" if math.isfinite(self.error) else ""
            title = f"{self.matrix.short_name}: trace {format_number(self.trace)}{error}"
            data = f"{self.matrix.data_text}, {self.matrix.parameters:,} parameters"
            axes.set_title(f"{title}\n{data}")
            axes.set(xlabel="probes", ylabel="trace")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.legend()
        return axes


def hessian_trace(
    model: nn.Module,
    variables: Any,
    batch: Batches,
    *,
    probes: int = 32,
    operator: MatrixKind = "hessian",
    layers: Layers = None,
    bn: BatchStatistics = "running",
    loss: Loss = cross_entropy,
    seed: int = 0,
    progress: Progress = None,
) -> HessianTrace:
    """Unbiased estimate of the trace: the mean of v^T A v over probes v of random signs.

    The variance of one estimate is twice the sum of the squared off-diagonal entries.
    Other arguments as for `hvp`. Raises InputError as `hvp`, for no probes, and where the
    curvature is not finite. Cost: `probes` products (see `hvp`).
    Source: Hutchinson 1990; Yao et al. 2020, algorithm 2.
    """
    require(isinstance(probes, int) and probes >= 1, "probes", probes, "1 or more")
    product, data, matrix = make_operator(model, variables, batch, operator, layers, bn, loss)
    estimates: list[float] = []
    for probe in range(probes):
        signs = rademacher(seed, probe, product.flat(data[0])[0])
        image = apply(data, signs, product=product)
        estimates.append(check_finite(jnp.vdot(signs, image, precision="highest")))
        if progress:
            progress(probe + 1, probes)
    return HessianTrace(matrix, *_mean_and_error(tuple(estimates)), tuple(estimates))


def _mean_and_error(estimates: tuple[float, ...]) -> tuple[float, float]:
    values = np.array(estimates)
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(values.mean()), float(error)
