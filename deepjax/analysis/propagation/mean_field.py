"""Mean field theory: how variances and correlations propagate through infinitely wide layers.

Poole et al., "Exponential expressivity in deep neural networks through transient chaos", 2016
(arXiv:1606.05340), and Schoenholz et al., "Deep information propagation", 2017 (arXiv:1611.01232);
it holds for convolutions alike (Xiao et al. 2018, arXiv:1806.05393).
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from deepjax.analysis.core.result import Result
from deepjax.errors import require

Activation = Callable[[Array], Array]

_TINY, _HUGE = 1e-24, 1e12  # variances that stand for 0 and for infinity


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class MeanField(Result):
    """Layers z' = W activation(z) + b of infinite width.

    Weights have variance sigma_w^2 / width, biases sigma_b^2.
    """

    activation: str
    sigma_w: float
    sigma_b: float
    q_star: float
    """Limit of a preactivation's variance with depth, starting from 1; 0 if it vanishes, infinite
    if it grows without bound."""
    chi_1: float
    """Factor per layer of a squared gradient and of a small squared distance: ordered below 1,
    chaotic above 1."""
    c_star: float
    """Limit of the correlation between two inputs with depth: 1 if chi_1 <= 1."""
    xi_q: float
    """Layers over which the variance approaches q_star by a factor e; infinite if it is marginal,
    NaN for infinite q_star."""
    xi_c: float
    """Layers over which the correlation approaches c_star by a factor e; infinite if chi_1 is 1."""
    correlations: tuple[tuple[float, float], ...]
    """The correlation map at q_star: (correlation before, after a layer)."""

    def summary(self) -> dict[str, Any]:
        """Fixed points, chi_1 and depth scales."""
        return {name: getattr(self, name) for name in ("q_star", "chi_1", "c_star", "xi_q", "xi_c")}

    def rows(self) -> list[dict[str, Any]]:
        """One plain dict of all numbers but the map."""
        values = dataclasses.asdict(self)
        del values["correlations"]
        return [values]

    def plot(self, ax: Any = None, title: str | None = None) -> Any:
        """The correlation map with the diagonal and its stable fixed point; returns the Axes."""
        from deepjax.analysis.plots import COLORS, canvas

        before, after = np.array(self.correlations).T
        ordered = "ordered" if self.chi_1 < 1 else "chaotic"
        phase = "critical" if abs(self.chi_1 - 1) < 1e-6 else ordered
        settings = f"$\\sigma_w$ = {self.sigma_w:.3g}, $\\sigma_b$ = {self.sigma_b:.3g}"
        finding = f"{self.activation}, {settings}: {phase}, $\\chi_1$ = {self.chi_1:.3f}"
        layers = f"{self.xi_c:.3g}" if math.isfinite(self.xi_c) else "infinitely many"
        label = f"fixed point c* = {self.c_star:.3f}\napproached over {layers} layers"
        with canvas(ax, 4.6, 4.4, title) as axes:
            axes.plot([0, 1], [0, 1], "--", color="0.6", linewidth=1)
            axes.plot(before, after, color=COLORS[0])
            axes.plot([self.c_star], [self.c_star], "o", color=COLORS[1], clip_on=False)
            axes.text(0.97, 0.12, label, color=COLORS[1], ha="right", va="bottom")
            axes.text(0.97, 0.04, "dashed: no change", color="0.45", ha="right", va="bottom")
            axes.set(title=finding, xlim=(0, 1), ylim=(0, 1), aspect="equal")
            axes.set(xlabel="correlation between two inputs", ylabel="correlation one layer on")
        return axes


def mean_field(activation: Activation, sigma_w: float, sigma_b: float) -> MeanField:
    """Fixed points, stability and depth scales of an infinitely wide network.

    activation: elementwise on arrays, built of jax.numpy. Expectations are by Gauss-Hermite
    quadrature in float64 with 320 nodes per Gaussian: exact to rounding for ReLU's variance and
    chi_1; for tanh's chi_1 1e-8 up to a q_star of 4, 5e-5 at 10 and 2e-2 at 30; kinks away from 0
    cost accuracy (some 1e-2).
    Compiled once per activation: pass the same function, not a new lambda.
    Raises InputError for standard deviations that are negative or not finite, and a sigma_w of 0.
    Cost: some hundred evaluations at the nodes, a hundred at 320^2 pairs of them.
    Source: Schoenholz et al. 2017, sections 2 and 3; Xiao et al. 2018, section 2.
    """
    require(math.isfinite(sigma_w) and sigma_w > 0, "sigma_w", sigma_w, "a number above 0")
    require(math.isfinite(sigma_b) and sigma_b >= 0, "sigma_b", sigma_b, "a number from 0 up")
    layer = _Layer(activation, sigma_w**2, sigma_b**2)
    q_star = _fixed_point(layer.variance)
    q = min(max(q_star, _TINY), _HUGE)
    c_star = layer.fixed_correlation(q)
    return MeanField(
        activation=getattr(activation, "__name__", type(activation).__name__),
        sigma_w=sigma_w,
        sigma_b=sigma_b,
        q_star=q_star,
        chi_1=layer.chi(q),
        c_star=c_star,
        xi_q=_depth_scale(layer.variance_slope(q)) if math.isfinite(q_star) else math.nan,
        xi_c=_depth_scale(layer.correlation_slope(q, c_star)),
        correlations=tuple(
            (float(c), layer.correlation(q, float(c))) for c in np.linspace(0, 1, 41)
        ),
    )


def critical_sigma_w(activation: Activation, sigma_b: float) -> float:
    """The sigma_w at which chi_1 is 1: the edge of chaos, where signals reach any depth.

    activation, sigma_b and accuracy as in `mean_field`. tanh with sigma_b = 0: 1; ReLU: sqrt(2).
    Raises InputError for a sigma_b that is negative or not finite, and an activation whose
    derivative is 0 everywhere.
    Cost: some hundred evaluations at 320 nodes.
    Source: Schoenholz et al. 2017, section 3; Xiao et al. 2018, Figure 2.
    """
    require(math.isfinite(sigma_b) and sigma_b >= 0, "sigma_b", sigma_b, "a number from 0 up")
    unit = _Layer(activation, 1.0, 0.0)
    require(unit.chi(1.0) > 0, "activation", activation, "one with a derivative")
    # With sigma_w^2 = 1 / E[activation'^2] chi_1 is 1 at any variance; it remains to find the
    # variance that is then a fixed point.
    q = _fixed_point(lambda q: unit.variance(q) / unit.chi(q) + sigma_b**2)
    return 1 / math.sqrt(unit.chi(min(max(q, _TINY), _HUGE)))


@functools.cache
def _quadrature() -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of expectations over a standard normal (half a second to compute)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(320)  # even: no node on ReLU's kink
    return nodes, weights / weights.sum()


@dataclasses.dataclass(frozen=True)
class _Layer:
    """Expectations over Gaussian preactivations of variance q, and over pairs of correlation c."""

    activation: Activation
    weight: float
    bias: float

    def variance(self, q: float) -> float:
        nodes, weights = _quadrature()
        value, _ = self._value_and_slope(math.sqrt(q) * nodes)
        return self.weight * float(weights @ value**2) + self.bias

    def variance_slope(self, q: float) -> float:
        nodes, weights = _quadrature()
        value, slope = self._value_and_slope(math.sqrt(q) * nodes)
        return self.weight * float(weights @ (value * slope * nodes)) / math.sqrt(q)

    def chi(self, q: float) -> float:
        nodes, weights = _quadrature()
        _, slope = self._value_and_slope(math.sqrt(q) * nodes)
        return self.weight * float(weights @ slope**2)

    def correlation(self, q: float, c: float) -> float:
        return (self.weight * self._pair(q, c, 0) + self.bias) / self.variance(q)

    def correlation_slope(self, q: float, c: float) -> float:
        """Slope of the correlation map; at c = 1 and a finite fixed point it is chi_1."""
        slope = self.chi(q) if c == 1 else self.weight * self._pair(q, c, 1)
        return slope * q / self.variance(q)

    def fixed_correlation(self, q: float) -> float:
        if self.correlation_slope(q, 1.0) <= 1 + 1e-9 or self.correlation(q, 1 - 1e-6) >= 1 - 1e-6:
            return 1.0
        if self.correlation(q, 0.0) < 1e-15:  # an odd activation without bias
            return 0.0
        return _bisect(lambda c: self.correlation(q, c) - c, 0.0, 1 - 1e-6)

    def _pair(self, q: float, c: float, which: int) -> float:
        """Expected product over a pair; which: 0 of the activation's values, 1 of its slopes."""
        nodes, weights = _quadrature()
        first = math.sqrt(q) * nodes
        second = c * first[:, None] + math.sqrt(max(1 - c * c, 0.0)) * first[None, :]
        left, right = self._value_and_slope(first)[which], self._value_and_slope(second)[which]
        return float((weights * left) @ right @ weights)

    def _value_and_slope(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with jax.enable_x64(True):
            value, slope = _value_and_slope(self.activation, z)
            return np.asarray(value), np.asarray(slope)


@functools.partial(jax.jit, static_argnames="activation")
def _value_and_slope(activation: Activation, z: Array) -> tuple[Array, Array]:
    return jax.jvp(activation, (z,), (jnp.ones_like(z),))


def _fixed_point(step: Callable[[float], float]) -> float:
    """Limit of the iteration q -> step(q) from 1."""
    q, first = 1.0, step(1.0) - 1.0
    if abs(first) < 1e-12:
        return q
    factor = 2.0 if first > 0 else 0.5
    while _TINY < q < _HUGE:
        if (step(factor * q) - factor * q) * first <= 0:
            return _bisect(lambda q: step(q) - q, *sorted((q, factor * q)))
        q *= factor
    return math.inf if first > 0 else 0.0


def _bisect(function: Callable[[float], float], low: float, high: float) -> float:
    """A root of a function that falls from above 0 to below.

    Bisection, not brentq: its 52 halvings give the same number whatever SciPy's version.
    """
    for _ in range(52):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) > 0 else (low, middle)
    return (low + high) / 2


def _depth_scale(slope: float) -> float:
    """Layers over which slope^layers falls by a factor e."""
    if slope == 0:
        return 0.0
    return math.inf if abs(math.log(abs(slope))) < 1e-9 else -1 / math.log(abs(slope))
