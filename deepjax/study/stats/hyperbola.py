"""Steps to a loss over batch sizes: a hyperbola with a critical batch size."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Hyperbola:
    """(S / S_min - 1) (E / E_min - 1) = 1 for S steps on E = B S examples: S = S_min + E_min / B.

    McCandlish et al. 2018, section 2.2.
    """

    s_min: float
    """Minimum number of steps, at any batch size."""
    e_min: float
    """Minimum number of examples, at any batch size."""

    @property
    def critical(self) -> float:
        """The critical batch size E_min / S_min: twice the minimum of steps and of examples."""
        return self.e_min / self.s_min

    def steps(self, batch: float) -> float:
        """Steps at a batch size."""
        return self.s_min + self.e_min / batch


def fit_hyperbola(batches: Sequence[float], steps: Sequence[float]) -> Hyperbola:
    """Least squares of log S.

    Raises ValueError for fewer than three batch sizes, and for steps that are not finite.
    """
    import scipy.optimize  # here, since it takes half a second

    if len(batches) < 3 or not np.all(np.isfinite(steps)):
        raise ValueError(
            f"a hyperbola needs three batch sizes or more that reach the target, given {batches}: "
            f"{steps}"
        )
    b, s = np.asarray(batches, float), np.asarray(steps, float)

    def residuals(logs: np.ndarray) -> np.ndarray:
        return np.log(np.exp(logs[0]) + np.exp(logs[1]) / b) - np.log(s)

    found = scipy.optimize.least_squares(residuals, np.log([s.min(), (s * b).min()])).x
    return Hyperbola(*map(float, np.exp(found)))
