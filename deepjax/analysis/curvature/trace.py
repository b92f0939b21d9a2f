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
from jax import Array

from deepjax.analysis.core.instrument import instrument
from deepjax.analysis.core.layers import Layers
from deepjax.analysis.core.linear_operator import rademacher
from deepjax.analysis.core.mode import EVAL, Mode
from deepjax.analysis.core.options import Progress
from deepjax.analysis.core.result import Result
from deepjax.analysis.curvature.matrices import (
    MatrixKind,
    MatrixSpec,
    apply,
    check_finite,
    make_matrix,
)
from deepjax.analysis.network.batch import Batches
from deepjax.analysis.network.module import Loss, Model, cross_entropy, stream_key
from deepjax.errors import require


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class HessianTrace(Result):
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

    def summary(self) -> dict[str, Any]:
        """The trace, its standard error, and the mean eigenvalue."""
        mean = {"mean eigenvalue": self.mean_eigenvalue, "probes": len(self.estimates)}
        return {"trace": self.trace, "standard error": self.error} | mean

    def rows(self) -> list[dict[str, Any]]:
        """One dict per probe: its estimate, and trace and standard error up to this probe."""
        found = []
        for count, estimate in enumerate(self.estimates, 1):
            trace, error = _mean_and_error(self.estimates[:count])
            found.append({"probe": count, "estimate": estimate, "trace": trace, "error": error})
        return found

    def plot(self, ax: Any = None, title: str | None = None) -> Any:
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
        with canvas(ax, 5.2, 3.8, title) as axes:
            axes.plot(probes, estimates, ".", color="0.7", label="one probe")
            axes.plot(probes, means, color=COLORS[0], label="mean so far")
            axes.fill_between(probes[1:], low, high, color=COLORS[0], alpha=0.2, linewidth=0)
            error = f" ± {format_number(self.error)}" if math.isfinite(self.error) else ""
            finding = f"{self.matrix.short_name}: trace {format_number(self.trace)}{error}"
            data = f"{self.matrix.data_text}, {self.matrix.parameters:,} parameters"
            axes.set_title(f"{finding}\n{data}")
            axes.set(xlabel="probes", ylabel="trace")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.legend()
        return axes


@instrument
def hessian_trace(
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
    probes: int = 32,
) -> HessianTrace:
    """Unbiased estimate of the trace: the mean of v^T A v over probes v of random signs.

    The variance of one estimate is twice the sum of the squared off-diagonal entries.
    Other arguments as for `top_eigenvalues`. Raises InputError as `hessian`, for no probes, and
    where the curvature is not finite. Cost: `probes` products (see `hessian`).
    Source: Hutchinson 1990; Yao et al. 2020, algorithm 2.
    """
    require(isinstance(probes, int) and probes >= 1, "probes", probes, "1 or more")
    product, data, matrix = make_matrix(
        model, variables, batch, operator=operator, loss=loss, mode=mode, layers=layers, key=key
    )
    estimates: list[float] = []
    own, (like, _) = stream_key(data.key, "probes"), product.flat(data.variables)
    for probe in range(probes):
        signs = rademacher(own, probe, like)
        image = apply(data, signs, product=product)
        estimates.append(check_finite(jnp.vdot(signs, image, precision="highest")))
        if progress:
            progress(probe + 1, probes)
    return HessianTrace(matrix, *_mean_and_error(tuple(estimates)), tuple(estimates))


def _mean_and_error(estimates: tuple[float, ...]) -> tuple[float, float]:
    values = np.array(estimates)
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(values.mean()), float(error)
