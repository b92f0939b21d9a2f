"""How a signal travels through depth: measured block by block in a network, and predicted for infinitely wide layers.

Brock, De and Smith, "Characterizing signal propagation to close the performance gap in unnormalized ResNets", 2021
(arXiv:2101.08692), section 3: signal propagation plots. Poole et al., "Exponential expressivity in deep neural networks through
transient chaos", 2016 (arXiv:1606.05340), and Schoenholz et al., "Deep information propagation", 2017 (arXiv:1611.01232): mean
field theory, which Xiao et al. 2018 (arXiv:1806.05393) show to hold for convolutions alike.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from deepjax.analysis.core.calls import Call, all_calls, is_float, is_sum, path_of, visit_calls
from deepjax.analysis.core.module import Model, entry, mode_text, name_of
from deepjax.errors import InputError, require, unknown_name_error

Activation = Callable[[Array], Array]

_TINY, _HUGE = 1e-24, 1e12  # variances that stand for 0 and for infinity


@dataclasses.dataclass(frozen=True)
class BlockSignal:
    """One call of one block. Channels are the output's last axis, and means and variances are over all its other axes."""

    block: str
    """Path of the module."""
    shape: tuple[int, ...]
    """Of its output."""
    squared_mean: float
    """Mean over channels of the squared channel mean."""
    variance: float
    """Mean over channels of the channel variance."""
    branch_variance: float | None
    """The same of what the block adds to its shortcut, at its last sum; None of a block without one."""


@dataclasses.dataclass(frozen=True)
class Propagation:
    """Every block in the order in which the forward pass ends it."""

    train: bool
    """Whether batch norm used the batch's statistics."""
    blocks: tuple[BlockSignal, ...]
    unseen: tuple[str, ...]
    """Blocks that run inside nn.scan or nn.remat, whose outputs cannot be read."""
    mode: str = ""
    """How the network was set to that mode, and what it draws and writes in evaluation."""

    @property
    def growth(self) -> float:
        """Factor by which the variance grows per block, from a line fitted to its logarithm; NaN with fewer than two blocks."""
        variances = np.array([block.variance for block in self.blocks])
        if len(variances) < 2 or not (variances > 0).all():
            return float("nan")
        return float(np.exp(np.polyfit(np.arange(len(variances)), np.log(variances), 1)[0]))

    def rows(self) -> list[dict[str, Any]]:
        """A plain dict a block."""
        return [dataclasses.asdict(block) for block in self.blocks]

    def plot(self, ax: Any = None) -> Any:
        """The three quantities against the block, on a logarithmic axis; returns the matplotlib Axes."""
        from deepjax.analysis.plots import COLORS, canvas, label_line_ends, plain_log_ticks

        branch = [
            np.nan if block.branch_variance is None else block.branch_variance
            for block in self.blocks
        ]
        lines = {
            "channel variance": [block.variance for block in self.blocks],
            "squared channel mean": [block.squared_mean for block in self.blocks],
            "branch variance": branch,
        }
        with canvas(ax, 6.0, 4.0) as axes:
            axes.set_yscale("log")
            ends = {}
            for (label, values), color, style in zip(
                lines.items(), COLORS, ("o-", "s--", "^:"), strict=False
            ):
                places = [i for i, value in enumerate(values, 1) if value > 0]
                if places:
                    axes.plot(
                        places, [values[i - 1] for i in places], style, color=color, markersize=4
                    )
                    ends[label] = (values[places[-1] - 1], color)
            label_line_ends(axes, ends, len(self.blocks))
            first, last = self.blocks[0].variance, self.blocks[-1].variance
            over = f"Channel variance {first:.3g}, after {len(self.blocks)} blocks {last:.3g}"
            axes.set(title=over, xlabel="block", ylabel="mean over channels")
            plain_log_ticks(axes)
            axes.set_xticks(range(1, len(self.blocks) + 1, max(1, len(self.blocks) // 10)))
        return axes


def signal_propagation(
    model: Model,
    variables: Any,
    inputs: Array,
    *,
    train: bool = True,
    blocks: Sequence[str] | None = None,
) -> Propagation:
    """Per block: average squared channel mean, average channel variance, and the variance at the end of the residual branch.

    inputs: what the network takes, (batch, height, width, channels) for one, or a tuple of such; standard Gaussian in the paper.
    `blocks`: paths of modules, default those whose class has "Block" in its name (of nested ones the outermost), or without any
    all modules of the first level. A block called several times has a row a call. A residual
    block shows its branch by a module whose call is (shortcut, branch), as for `trace`.
    Raises InputError for an unknown block (naming the nearest), inputs that do not fit, and blocks inside nn.scan or nn.remat
    where they were asked for or are all there is; where others are seen they are listed in `unseen`.
    Cost: one forward pass, compiled once for a network and shape. Source: Brock et al. 2021, section 3.
    """
    model, variables = entry(model, variables)
    calls = all_calls(model, variables, inputs, train)
    paths = _default_blocks(calls) if blocks is None else tuple(blocks)
    for path in paths:
        if path not in {call.path for call in calls}:
            raise unknown_name_error("block", path, {call.path for call in calls if call.path})
    hidden = tuple(
        dict.fromkeys(call.path for call in calls if call.in_transform and call.path in paths)
    )
    seen = [call for call in calls if call.path in paths and not call.in_transform]
    if hidden and (blocks is not None or not seen):
        raise InputError(
            f"blocks {', '.join(hidden)} run inside nn.scan or nn.remat, where their outputs cannot be read; "
            "build the network without it (scan=False), or name blocks outside"
        )
    if not seen:
        raise InputError(
            f"{name_of(model)} calls no modules that return arrays of floats; name its blocks"
        )
    found = jax.device_get(_signals(model, variables, inputs, paths=frozenset(paths), train=train))
    rows = (_row(call, numbers) for call, numbers in zip(seen, found, strict=True))
    return Propagation(
        train, tuple(rows), hidden, mode_text(model, variables, (inputs, None), train)
    )


def _row(call: Call, numbers: Any) -> BlockSignal:
    mean, variance, branch = numbers
    return BlockSignal(
        call.path,
        call.shape,
        float(mean),
        float(variance),
        None if branch is None else float(branch),
    )


def _default_blocks(calls: Sequence[Call]) -> tuple[str, ...]:
    named = dict.fromkeys(call.path for call in calls if call.path and "Block" in call.kind)
    outermost = [path for path in named if not any(path.startswith(f"{other}/") for other in named)]
    first = dict.fromkeys(call.path for call in calls if call.path and "/" not in call.path)
    return tuple(
        outermost or first or dict.fromkeys(call.path for call in calls if call.in_transform)
    )


@functools.partial(jax.jit, static_argnames=("model", "paths", "train"))
def _signals(
    model: Model, variables: Any, inputs: Any, *, paths: frozenset[str], train: bool
) -> list[Any]:
    found: list[Any] = []
    sums: list[tuple[str, Array]] = []  # those that ended since the last block

    def keep(module: nn.Module, arguments: tuple[Any, ...], output: Array, inside: bool) -> None:
        path = path_of(module)
        if is_sum(module) and not inside and is_float(arguments[1]):
            sums.append((path, _moments(arguments[1].astype(jnp.float32))[1]))
        if path in paths and not inside:
            branches = [variance for at, variance in sums if f"{at}/".startswith(f"{path}/")]
            found.append(
                (*_moments(output.astype(jnp.float32)), branches[-1] if branches else None)
            )
            sums.clear()

    visit_calls(model, variables, inputs, train, keep)
    return found


def _moments(x: Array) -> tuple[Array, Array]:
    axes = tuple(range(x.ndim - 1))
    return jnp.mean(jnp.square(jnp.mean(x, axis=axes))), jnp.mean(jnp.var(x, axis=axes))


@dataclasses.dataclass(frozen=True)
class MeanField:
    """Layers z' = W activation(z) + b of infinite width, weights of variance sigma_w^2 / width, biases of variance sigma_b^2."""

    activation: str
    sigma_w: float
    sigma_b: float
    q_star: float
    """Variance of a preactivation in the deep, starting from 1; 0 where it dies out, infinite where it grows without bound."""
    chi_1: float
    """Factor per layer of a gradient's square, and of a small distance's: below 1 ordered, above 1 chaotic."""
    c_star: float
    """Correlation between two inputs in the deep: 1 where chi_1 <= 1."""
    xi_q: float
    """Layers over which the variance approaches q_star by a factor e; infinite where it is marginal, NaN for infinite q_star."""
    xi_c: float
    """Layers over which the correlation approaches c_star by a factor e; infinite where chi_1 is 1."""
    correlations: tuple[tuple[float, float], ...]
    """The correlation map at q_star: (correlation before, after a layer)."""

    def rows(self) -> list[dict[str, Any]]:
        """One plain dict of all numbers but the map."""
        return [
            {
                name: value
                for name, value in dataclasses.asdict(self).items()
                if name != "correlations"
            }
        ]

    def plot(self, ax: Any = None) -> Any:
        """The correlation map with the diagonal and its stable fixed point; returns the matplotlib Axes."""
        from deepjax.analysis.plots import COLORS, canvas

        before, after = np.array(self.correlations).T
        with canvas(ax, 4.6, 4.4) as axes:
            axes.plot([0, 1], [0, 1], "--", color="0.6", linewidth=1)
            axes.plot(before, after, color=COLORS[0])
            axes.plot([self.c_star], [self.c_star], "o", color=COLORS[1], clip_on=False)
            label = f"fixed point c* = {self.c_star:.3f}\napproached over {_layers(self.xi_c)}"
            axes.text(0.97, 0.12, label, color=COLORS[1], ha="right", va="bottom")
            axes.text(0.97, 0.04, "dashed: no change", color="0.45", ha="right", va="bottom")
            phase = (
                "critical"
                if abs(self.chi_1 - 1) < 1e-6
                else "ordered"
                if self.chi_1 < 1
                else "chaotic"
            )
            settings = f"$\\sigma_w$ = {self.sigma_w:.3g}, $\\sigma_b$ = {self.sigma_b:.3g}"
            axes.set(
                title=f"{self.activation}, {settings}: {phase}, $\\chi_1$ = {self.chi_1:.3f}",
                xlim=(0, 1),
                ylim=(0, 1),
                aspect="equal",
            )
            axes.set(xlabel="correlation between two inputs", ylabel="correlation one layer on")
        return axes


def mean_field(activation: Activation, sigma_w: float, sigma_b: float) -> MeanField:
    """Fixed point, stability and depth scales of an infinitely wide network, by Gauss-Hermite quadrature in float64.

    activation: elementwise on arrays, built of jax.numpy. 320 nodes a Gaussian: to rounding for ReLU's variance and
    chi_1; for tanh's chi_1 1e-8 up to a q_star of 4, 5e-5 at 10 and 2e-2 at 30; kinks away from 0 cost accuracy (some 1e-2).
    Raises InputError for standard deviations that are negative or not finite, or for a sigma_w of 0.
    Cost: some hundred evaluations at the nodes, a hundred at 320^2 pairs of them; compiled once for an activation: pass the same
    function again, not a new lambda. Source: Schoenholz et al. 2017, sections 2 and 3; Xiao et al. 2018, section 2.
    """
    require(math.isfinite(sigma_w) and sigma_w > 0, "sigma_w", sigma_w, "a number above 0")
    require(math.isfinite(sigma_b) and sigma_b >= 0, "sigma_b", sigma_b, "a number from 0 up")
    layer = _Layer(activation, sigma_w**2, sigma_b**2)
    q_star = _settled(layer.variance)
    q = min(max(q_star, _TINY), _HUGE)
    c_star = layer.fixed_correlation(q)
    return MeanField(
        activation=getattr(activation, "__name__", type(activation).__name__),
        sigma_w=sigma_w,
        sigma_b=sigma_b,
        q_star=q_star,
        chi_1=layer.chi(q),
        c_star=c_star,
        xi_q=_scale(layer.variance_slope(q)) if math.isfinite(q_star) else math.nan,
        xi_c=_scale(layer.correlation_slope(q, c_star)),
        correlations=tuple(
            (float(c), layer.correlation(q, float(c))) for c in np.linspace(0, 1, 41)
        ),
    )


def critical_sigma_w(activation: Activation, sigma_b: float) -> float:
    """The sigma_w at which chi_1 is 1: on the edge of chaos, where signals reach any depth.

    activation, sigma_b and accuracy as in `mean_field`. tanh with sigma_b = 0: 1; ReLU: sqrt(2).
    Raises InputError for a sigma_b that is negative or not finite, and an activation whose derivative is 0 everywhere.
    Cost: some hundred evaluations at 320 nodes. Source: Schoenholz et al. 2017, section 3; Xiao et al. 2018, Figure 2.
    """
    require(math.isfinite(sigma_b) and sigma_b >= 0, "sigma_b", sigma_b, "a number from 0 up")
    unit = _Layer(activation, 1.0, 0.0)
    require(unit.chi(1.0) > 0, "activation", activation, "one with a derivative")
    # With sigma_w^2 = 1 / E[activation'^2] chi_1 is 1 at any variance; there remains to find the variance that then stays.
    q = _settled(lambda q: unit.variance(q) / unit.chi(q) + sigma_b**2)
    return 1 / math.sqrt(unit.chi(min(max(q, _TINY), _HUGE)))


@functools.cache
def _quadrature() -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of expectations over a standard normal; worked out when first asked for, which takes half a second."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(
        320
    )  # an even number: no node on the kink of a ReLU
    return nodes, weights / weights.sum()


@dataclasses.dataclass(frozen=True)
class _Layer:
    """Expectations over Gaussian preactivations of variance q, and over pairs of correlation c."""

    activation: Activation
    weight: float
    bias: float

    def variance(self, q: float) -> float:
        nodes, weights = _quadrature()
        value, _ = self._at(math.sqrt(q) * nodes)
        return self.weight * float(weights @ value**2) + self.bias

    def variance_slope(self, q: float) -> float:
        nodes, weights = _quadrature()
        value, slope = self._at(math.sqrt(q) * nodes)
        return self.weight * float(weights @ (value * slope * nodes)) / math.sqrt(q)

    def chi(self, q: float) -> float:
        nodes, weights = _quadrature()
        _, slope = self._at(math.sqrt(q) * nodes)
        return self.weight * float(weights @ slope**2)

    def correlation(self, q: float, c: float) -> float:
        return (self.weight * self._pair(q, c, 0) + self.bias) / self.variance(q)

    def correlation_slope(self, q: float, c: float) -> float:
        """Of the map from correlation to correlation; at c = 1 and a finite fixed point it is chi_1."""
        slope = self.chi(q) if c == 1 else self.weight * self._pair(q, c, 1)
        return slope * q / self.variance(q)

    def fixed_correlation(self, q: float) -> float:
        if self.correlation_slope(q, 1.0) <= 1 + 1e-9 or self.correlation(q, 1 - 1e-6) >= 1 - 1e-6:
            return 1.0
        if self.correlation(q, 0.0) < 1e-15:  # an odd activation without bias
            return 0.0
        return _bisected(lambda c: self.correlation(q, c) - c, 0.0, 1 - 1e-6)

    def _pair(self, q: float, c: float, which: int) -> float:
        nodes, weights = _quadrature()
        first = math.sqrt(q) * nodes
        second = c * first[:, None] + math.sqrt(max(1 - c * c, 0.0)) * first[None, :]
        return float((weights * self._at(first)[which]) @ self._at(second)[which] @ weights)

    def _at(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with jax.enable_x64(True):
            value, slope = _value_and_slope(self.activation, z)
            return np.asarray(value), np.asarray(slope)


@functools.partial(jax.jit, static_argnames="activation")
def _value_and_slope(activation: Activation, z: Array) -> tuple[Array, Array]:
    return jax.jvp(activation, (z,), (jnp.ones_like(z),))


def _settled(step: Callable[[float], float]) -> float:
    """Where the iteration q -> step(q) goes from 1."""
    q, first = 1.0, step(1.0) - 1.0
    if abs(first) < 1e-12:
        return q
    factor = 2.0 if first > 0 else 0.5
    while _TINY < q < _HUGE:
        if (step(factor * q) - factor * q) * first <= 0:
            return _bisected(lambda q: step(q) - q, *sorted((q, factor * q)))
        q *= factor
    return math.inf if first > 0 else 0.0


def _bisected(function: Callable[[float], float], low: float, high: float) -> float:
    """A place where the function falls from above 0 to below."""
    for _ in range(52):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) > 0 else (low, middle)
    return (low + high) / 2


def _scale(slope: float) -> float:
    """Layers over which slope^layers falls by a factor e."""
    if slope == 0:
        return 0.0
    return math.inf if abs(math.log(abs(slope))) < 1e-9 else -1 / math.log(abs(slope))


def _layers(scale: float) -> str:
    return f"{scale:.3g} layers" if math.isfinite(scale) else "infinitely many layers"
