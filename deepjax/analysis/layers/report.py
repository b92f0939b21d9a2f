"""What activations and gradients do, layer by layer, in one pass through any linen module: `trace`."""

import dataclasses
import functools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.core import Tracer

from deepjax.analysis.core.batch import require_one
from deepjax.analysis.core.calls import is_float
from deepjax.analysis.core.module import Batch, Loss, Model, Rngs, cross_entropy, entry, mode_text
from deepjax.analysis.core.params import Path, by_path, check_like, path_string, widened
from deepjax.analysis.core.taps import (
    Measure,
    Site,
    labels,
    loss_grads_and_measurements,
    select_sites,
    sites,
)
from deepjax.backend.conv_layouts import canonicalize_conv_layouts
from deepjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class LayerRow:
    """One output of a layer, or the parameters of one whose output is not seen.

    Of a layer that runs several times (shared, or inside a scan) all but the norms are means over its runs; calls with other shapes
    have a row of their own. Complex numbers count as pairs of real ones, but in `largest` and `dead` as absolute values.
    """

    layer: str
    """Path of the module, as in the parameters; "" is the network."""
    output: str
    """Which output: "" for the one array that `__call__` returns, else such as "[0]", ".encode()" or, where others have the same
    path, what it differs in (the module's class, shapes)."""
    shape: tuple[int, ...]
    """Of its output."""
    runs: int
    """How often it ran; 0: nothing leads from its output to the loss, and nothing is known of it (see `LayerReport.unseen`)."""
    mean: float
    std: float
    """Mean and standard deviation of the output over all its entries."""
    max_abs: float
    """Largest absolute value of the output."""
    dead_fraction: float
    """Share of channels (last axis) that are nowhere above 0 in the batch: after a ReLU, or under the one that follows."""
    gradient_norm: float
    """L2 norm of the loss's gradient with respect to the output, all examples together; nan where it is not seen."""
    weight_norm: float | None
    parameter_gradient_norm: float | None
    """L2 norms of the layer's own parameters and of the loss's gradient with respect to them; None where it has none. Of several
    rows of one path the last one has them: the rows of a report add up to all parameters."""
    update_ratio: float | None
    """||update|| / ||parameters||; None without `updates`."""
    shortcut_norm: float | None
    branch_norm: float | None
    branch_ratio: float | None
    cosine: float | None
    """Of a sum of (shortcut, branch): their L2 norms, ||branch|| / ||shortcut||, and the cosine between them; else None."""

    @property
    def label(self) -> str:
        """Layer and output, as they are shown; no two rows of a report have the same."""
        return (self.layer or ("" if self.output else "(network)")) + self.output


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """Every layer in the order in which the forward pass ends it, and the loss of the batch."""

    loss: float
    train: bool
    """Whether training was asked for: batch norm by the batch's statistics, dropout that drops."""
    mode: str
    """By which switch the network was set to that, or that none was found."""
    layers: tuple[LayerRow, ...]
    unseen: tuple[str, ...] = ()
    """Rows of whose output nothing is known, each with the reason."""

    def rows(self) -> list[dict[str, Any]]:
        """A plain dict a layer."""
        return [dataclasses.asdict(row) for row in self.layers]

    def plot(self) -> Any:
        """Four panels against depth: outputs, dead channels, gradients, residual branches; a matplotlib figure."""
        from deepjax.analysis.layers.layer_figure import draw

        return draw(self)

    def __repr__(self) -> str:
        """A table; columns that no layer fills are left out."""
        columns = [[name, *cells] for name, cells in _columns(self.layers).items() if any(cells)]
        widths = [max(map(len, column)) for column in columns]
        lines = [
            "  ".join(map(_aligned, cells, widths, range(len(cells))))
            for cells in zip(*columns, strict=True)
        ]
        unseen = [f"unseen: {each}" for each in self.unseen]
        return "\n".join([f"loss {self.loss:.4f}, {self.mode}", *lines, *unseen])


def trace(
    model: Model,
    variables: Any,
    batch: Batch,
    *,
    loss: Loss = cross_entropy,
    train: bool = True,
    rngs: Rngs = None,
    layers: Sequence[str] | None = None,
    updates: Any = None,
) -> LayerReport:
    """One call that shows, layer by layer, what activations and gradients do, for any linen module, unmodified.

    batch: (inputs, labels), or a dict with "image" and "label"; `loss`: (outputs, batch) -> scalar. `layers`: paths, default all.
    `updates`: what an optimizer would add to the parameters (its second result), for the update-to-weight ratio.
    Under `nn.remat`, `nn.jit`, `nn.scan` and `nn.vmap` too; a scanned block has one row for all its runs. A layer that returns
    several arrays, or is called by other methods, has a row for each output; parameters of a layer without one have a row too, so
    that the norms of all rows add up to those of all parameters and of their gradient. What is not seen is listed as unseen.
    Compiled once for a network, loss and shapes: pass the same `loss` function again, not a new lambda.
    Cost: one forward and one backward pass and a few numbers a layer. Raises InputError for an unknown layer, a batch that does not
    fit, a loss that is not a scalar, a list of batches, updates unlike the parameters, and inside `jax.jit`.
    """
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((variables, batch))):
        raise InputError(
            "trace gives numbers on the host and cannot run inside jax.jit; allowed there: taps, layer_statistics"
        )
    require_one(batch, "trace")
    model, variables = entry(model, variables)
    updates = nn.meta.unbox(updates)
    everywhere = sites(model, variables, batch, loss, train, rngs)
    if updates is not None:
        check_like("updates", updates, variables["params"])
    others = without_output(everywhere, variables["params"])
    at = select_sites(everywhere, layers, list(map(path_string, others)))
    pending = _statistics(
        variables, batch, rngs, updates, model=model, loss=loss, train=train, at=at
    )
    named = [path for path in others if layers is None or path_string(path) in layers]
    mode = mode_text(model, variables, batch, train)  # while the devices compute
    return report(jax.device_get(pending), at, named, train, mode)


@functools.partial(jax.jit, static_argnames=("model", "loss", "train", "at"))
@canonicalize_conv_layouts
def _statistics(
    variables: Any,
    batch: Batch,
    rngs: Rngs,
    updates: Any,
    *,
    model: Model,
    loss: Loss,
    train: bool,
    at: tuple[Site, ...],
) -> dict[str, Any]:
    return layer_statistics(
        model, variables, batch, loss, train, rngs, at, lambda gradients: updates
    )


def layer_statistics(
    model: Model,
    variables: Any,
    batch: Batch,
    loss: Loss,
    train: bool,
    rngs: Rngs,
    at: Sequence[Site],
    updates_of: Callable[[Any], Any] = lambda gradients: None,
) -> dict[str, Any]:
    """What `report` turns into rows: pure, for use inside a compiled function. `updates_of`: gradients -> updates, or None."""
    value, gradients, statistics = loss_grads_and_measurements(
        model, variables, batch, loss, train, rngs, at, STATISTICS
    )
    updates = updates_of(gradients)
    norms = {"weights": _layer_squares(variables["params"]), "gradients": _layer_squares(gradients)}
    return {
        "loss": value,
        "outputs": statistics,
        **norms,
        "updates": {} if updates is None else _layer_squares(updates),
    }


def without_output(everywhere: Sequence[Site], params: Any) -> tuple[Path, ...]:
    """Paths of the modules that have parameters and are no site."""
    own = {site.path for site in everywhere}
    return tuple(dict.fromkeys(path[:-1] for path in by_path(params) if path[:-1] not in own))


def report(
    found: dict[str, Any], at: Sequence[Site], others: Sequence[Path], train: bool, mode: str
) -> LayerReport:
    """The rows of numbers that are on the host. others: paths of `without_output`, each shown before the layer around it."""
    last = {site.path: place for place, site in enumerate(at)}
    rows: list[LayerRow] = []
    hidden, unseen = list(others), []
    no_norms: dict[str, Any] = dict.fromkeys(_NORMS)
    for place, (site, label) in enumerate(zip(at, labels(at), strict=True)):
        inner = [path for path in hidden if path[: len(site.path)] == site.path]
        rows += [_hidden_row(path, found) for path in inner]
        hidden = [path for path in hidden if path not in inner]
        norms = _norms(site.path, found) if last[site.path] == place else no_norms
        row = _row(site, label, found["outputs"][place], norms)
        if not row.runs:
            reason = _reason(site, at, found)
            unseen.append(f"{row.label}: {reason}")
            row = dataclasses.replace(row, gradient_norm=0.0 if reason == _NOTHING else math.nan)
        rows.append(row)
    rows += [_hidden_row(path, found) for path in hidden]
    unseen += [f"{'/'.join(path)}: {_NOT_CALLED}" for path in others]
    return LayerReport(float(found["loss"]), train, mode, tuple(rows), tuple(unseen))


def _of_output(arguments: tuple[Any, ...], output: Array) -> dict[str, Array]:
    x = _reals(output)
    mean = jnp.mean(x)
    size = widened(jnp.abs(output))
    above = size if jnp.iscomplexobj(output) else x
    channels = jnp.max(above, axis=tuple(range(above.ndim - 1)))
    sums = {
        "runs": jnp.ones((), jnp.float32),
        "mean": mean,
        "mean_square": jnp.square(mean),
        "variance": jnp.mean(jnp.square(x - mean)),
        "largest": jnp.max(size),
        "dead": jnp.mean((channels <= 0).astype(jnp.float32)),
    }
    return sums | (
        _of_sum(*arguments) if len(arguments) == 2 and _alike(*arguments, output) else {}
    )


def _reals(x: Array) -> Array:
    """Of a complex array the real and imaginary parts, along a new first axis."""
    return widened(jnp.stack([x.real, x.imag]) if jnp.iscomplexobj(x) else x)


def _square(x: Any) -> Array:
    """Sum of the squares of the absolute values; 0 of a gradient that there is none of (float0, of integers)."""
    return (
        jnp.zeros((), jnp.float32)
        if x.dtype == jax.dtypes.float0
        else jnp.sum(jnp.square(_reals(x)))
    )


def _alike(first: Any, second: Any, output: Array) -> bool:
    return all(is_float(value) and value.shape == output.shape for value in (first, second))


def _of_sum(shortcut: Array, branch: Array) -> dict[str, Array]:
    shortcut, branch = widened(shortcut), widened(branch)
    return {
        "shortcut": jnp.vdot(shortcut, shortcut),
        "branch": jnp.vdot(branch, branch),
        "product": jnp.vdot(shortcut, branch),
    }


STATISTICS = Measure(_of_output, _square)


def _layer_squares(tree: Any) -> dict[Path, Array]:
    """Sum of squares of each module's own parameters, by its path."""
    squares: dict[Path, list[Array]] = defaultdict(list)
    for path, leaf in by_path(tree).items():
        squares[path[:-1]] += [_square(leaf)]
    return {path: functools.reduce(jnp.add, each) for path, each in squares.items()}


def _row(site: Site, label: str, measured: Any, norms: dict[str, Any]) -> LayerRow:
    sums, gradient_square = measured
    known = sums["runs"] > 0
    return LayerRow(
        layer=site.layer,
        output=label,
        shape=site.shape,
        runs=int(sums["runs"]),
        **(_means(sums) if known else _UNKNOWN),
        gradient_norm=math.sqrt(float(gradient_square)),
        **norms,
        **(_sum_row(sums) if known and site.is_sum and "shortcut" in sums else _NO_SUM),
    )


def _hidden_row(path: Path, found: dict[str, Any]) -> LayerRow:
    """Parameters alone."""
    return LayerRow(
        path_string(path),
        "",
        (),
        0,
        **_UNKNOWN,
        gradient_norm=math.nan,
        **_norms(path, found),
        **_NO_SUM,
    )


_NOT_CALLED = "its parameters alone: the network does not call it, or it returns no array of floats"
_DERIVATIVE = "its output reaches the loss only through a derivative that the network takes"
_CUSTOM = "inside nn.custom_vjp, whose backward pass is its own"
_NOTHING = "nothing leads from it to the loss"


def _reason(site: Site, at: Sequence[Site], found: dict[str, Any]) -> str:
    """Why an output is not seen in the backward pass, by the gradient of the parameters in the module and below it."""
    if site.in_custom_vjp:
        return _CUSTOM
    below = (
        square for path, square in found["gradients"].items() if path[: len(site.path)] == site.path
    )
    if not any(square > 0 for square in below):
        return _NOTHING
    outputs = sum(other.path == site.path for other in at)
    return (
        _DERIVATIVE
        if outputs == 1
        else f"{_NOTHING}, unless through a derivative that the network takes"
    )


_MEANS = ("mean", "deviation", "largest", "dead")
_UNKNOWN: dict[str, Any] = dict.fromkeys(_MEANS, math.nan)


def _means(sums: dict[str, Any]) -> dict[str, float]:
    runs = float(sums["runs"])
    mean = float(sums["mean"]) / runs
    variance = (float(sums["variance"]) + float(sums["mean_square"])) / runs - mean**2
    largest, dead = float(sums["largest"]) / runs, float(sums["dead"]) / runs
    return dict(zip(_MEANS, (mean, math.sqrt(max(variance, 0.0)), largest, dead), strict=True))


_NORMS = ("weight_norm", "parameter_gradient_norm", "update_ratio")


def _norms(path: Path, found: dict[str, Any]) -> dict[str, Any]:
    weights, gradients, updates = (
        _root(found[name].get(path)) for name in ("weights", "gradients", "updates")
    )
    return dict(
        zip(
            _NORMS,
            (weights, gradients, None if updates is None or not weights else updates / weights),
            strict=True,
        )
    )


_NO_SUM: dict[str, Any] = dict.fromkeys(("shortcut_norm", "branch_norm", "branch_ratio", "cosine"))


def _sum_row(sums: dict[str, Any]) -> dict[str, Any]:
    shortcut, branch = math.sqrt(float(sums["shortcut"])), math.sqrt(float(sums["branch"]))
    product = shortcut * branch
    return {
        "shortcut_norm": shortcut,
        "branch_norm": branch,
        "branch_ratio": branch / shortcut if shortcut else math.inf,
        "cosine": float(sums["product"]) / product if product else None,
    }


def _root(square: Any) -> float | None:
    return None if square is None else math.sqrt(float(square))


def _columns(rows: Sequence[LayerRow]) -> dict[str, list[str]]:
    """The cells of the table by column."""

    def numbers(name: str) -> list[str]:
        values = [getattr(row, name) for row in rows]
        return [
            "" if value is None else "-" if math.isnan(value) else f"{value:.3g}"
            for value in values
        ]

    return {
        "layer": [row.label for row in rows],
        "shape": ["x".join(map(str, row.shape[1:])) for row in rows],
        "runs": [str(row.runs) if row.runs != 1 else "" for row in rows],
        "mean": numbers("mean"),
        "deviation": numbers("deviation"),
        "dead": [f"{100 * row.dead_fraction:.0f} %" if row.runs else "-" for row in rows],
        "gradient": numbers("gradient_norm"),
        "weights": numbers("weight_norm"),
        "their gradient": numbers("parameter_gradient_norm"),
        "update ratio": numbers("update_ratio"),
        "branch ratio": numbers("branch_ratio"),
    }


def _aligned(cell: str, width: int, place: int) -> str:
    return cell.rjust(width) if place else cell.ljust(width)
