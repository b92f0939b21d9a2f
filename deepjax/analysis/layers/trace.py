"""Statistics of activations and gradients, layer by layer, in one pass: `trace`."""

import dataclasses
import functools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.core import Tracer

from deepjax.analysis.core.instrument import instrument
from deepjax.analysis.core.layers import Layers, matching_layers
from deepjax.analysis.core.mode import TRAIN, Mode
from deepjax.analysis.core.params import Path, by_path, check_like, path_string, widened
from deepjax.analysis.layers.report import LayerReport, LayerRow
from deepjax.analysis.network.batch import Batches, mean_over_batches
from deepjax.analysis.network.calls import is_float
from deepjax.analysis.network.module import Batch, Loss, Model, Rngs, cross_entropy
from deepjax.analysis.network.taps import (
    Measure,
    Site,
    labels,
    loss_grads_and_measurements,
    select_sites,
    sites,
)
from deepjax.analysis.network.task import make_task
from deepjax.backend.conv_layouts import canonicalize_conv_layouts
from deepjax.errors import InputError


@instrument
def trace(
    model: Model,
    variables: Any,
    batch: Batches,
    *,
    loss: Loss = cross_entropy,
    mode: Mode = TRAIN,
    layers: Layers = None,
    key: Array | None = None,
    updates: Any = None,
) -> LayerReport:
    """Statistics of activations and gradients of every layer of a network of linen or NNX.

    batch: one, or several, whose mean loss is differentiated. layers: paths or patterns, default
    all. updates: what an optimizer would add to the parameters (its second result), for the
    update-to-weight ratio.
    Works under `nn.remat`, `nn.jit`, `nn.scan` and `nn.vmap`; a scanned block has one row for all
    its runs. A layer that returns several arrays, or whose other methods are called, has a row per
    output; parameters without a layer output have a row too, so that the norms of all rows add up
    to those of all parameters and of their gradient. A function has such rows only.
    `LayerReport.not_measured` lists the outputs that could not be measured.
    Compiled once per network, loss and shapes: pass the same `loss` function, not a new lambda.
    Raises InputError for an unknown layer, a batch that does not fit, a loss that is not a scalar,
    updates unlike the parameters, and inside `jax.jit`.
    Cost: one forward and one backward pass, and a few numbers per layer.
    """
    given = jax.tree.leaves((variables, batch), is_leaf=lambda leaf: isinstance(leaf, Iterator))
    if any(isinstance(leaf, Tracer) for leaf in given):
        raise InputError(
            "trace gives numbers on the host and cannot run inside jax.jit; allowed there: taps"
        )
    task = make_task(model, variables, batch, loss=loss, mode=mode, key=key)
    params = task.variables["params"]
    all_sites = sites(task.network, task.variables, task.data.first, loss, mode.train)
    if updates is not None:
        check_like("updates", updates, params)
    others = modules_without_output(all_sites, params)
    names = list(map(path_string, others))
    at = select_sites(all_sites, layers, names)
    measured = _layer_statistics(
        task.variables,
        task.data.stacked,
        task.key,
        nn.meta.unbox(updates),
        model=task.network,
        loss=loss,
        train=mode.train,
        at=at,
    )
    known = [*(site.layer + label for site, label in zip(at, labels(at), strict=True))]
    chosen = matching_layers(layers, [*names, *known, *(site.layer for site in at)])
    selected = [path for path in others if path_string(path) in chosen]
    text = task.mode_text  # while the devices compute
    return build_report(jax.device_get(measured), at, selected, mode, text)


@functools.partial(jax.jit, static_argnames=("model", "loss", "train", "at"))
@canonicalize_conv_layouts
def _layer_statistics(
    variables: Any,
    stacked: Any,
    key: Array,
    updates: Any,
    *,
    model: Model,
    loss: Loss,
    train: bool,
    at: tuple[Site, ...],
) -> dict[str, Any]:
    count = jax.tree.leaves(stacked)[0].shape[0]

    def one(key: Array, batch: Batch) -> Any:
        return loss_grads_and_measurements(
            model, variables, batch, loss, train, key, at, STATISTICS
        )

    value, gradients, outputs = mean_over_batches(one, stacked, key)
    # Sums over all runs, and the squared gradient of the mean loss.
    outputs = [
        (jax.tree.map(lambda leaf: leaf * count, sums), square / count) for sums, square in outputs
    ]
    return _statistics(variables, value, gradients, outputs, updates)


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
    """The arrays that `build_report` turns into rows: pure, for use inside a compiled function.

    updates_of: gradients -> updates, or None.
    """
    value, gradients, outputs = loss_grads_and_measurements(
        model, variables, batch, loss, train, rngs, at, STATISTICS
    )
    return _statistics(variables, value, gradients, outputs, updates_of(gradients))


def _statistics(
    variables: Any, value: Array, gradients: Any, outputs: Any, updates: Any
) -> dict[str, Any]:
    return {
        "loss": value,
        "outputs": outputs,
        "weights": _squares_by_module(variables["params"]),
        "gradients": _squares_by_module(gradients),
        "updates": {} if updates is None else _squares_by_module(updates),
    }


def modules_without_output(all_sites: Sequence[Site], params: Any) -> tuple[Path, ...]:
    """Paths of the modules that have parameters but no measured output."""
    measured = {site.path for site in all_sites}
    return tuple(dict.fromkeys(path[:-1] for path in by_path(params) if path[:-1] not in measured))


def build_report(
    statistics: dict[str, Any],
    at: Sequence[Site],
    others: Sequence[Path],
    mode: Mode,
    mode_text: str,
) -> LayerReport:
    """The report of `layer_statistics` that are on the host.

    others: paths from `modules_without_output`; each has its row before that of the layer around
    it.
    """
    last = {site.path: index for index, site in enumerate(at)}
    rows: list[LayerRow] = []
    remaining, not_measured = list(others), []
    no_norms: dict[str, Any] = dict.fromkeys(_NORMS)
    for index, (site, label) in enumerate(zip(at, labels(at), strict=True)):
        inner = [path for path in remaining if path[: len(site.path)] == site.path]
        rows += [_parameters_row(path, statistics) for path in inner]
        remaining = [path for path in remaining if path not in inner]
        norms = _norms(site.path, statistics) if last[site.path] == index else no_norms
        row = _row(site, label, statistics["outputs"][index], norms)
        if not row.runs:
            reason = _reason(site, at, statistics)
            not_measured.append(f"{row.label}: {reason}")
            gradient_norm = 0.0 if reason == _NO_INFLUENCE else math.nan
            row = dataclasses.replace(row, gradient_norm=gradient_norm)
        rows.append(row)
    rows += [_parameters_row(path, statistics) for path in remaining]
    not_measured += [f"{path_string(path) or '(network)'}: {_NOT_CALLED}" for path in others]
    return LayerReport(float(statistics["loss"]), mode, mode_text, tuple(rows), tuple(not_measured))


def _output_statistics(arguments: tuple[Any, ...], output: Array) -> dict[str, Array]:
    x = _real_parts(output)
    mean = jnp.mean(x)
    size = widened(jnp.abs(output))
    above = size if jnp.iscomplexobj(output) else x
    channels = jnp.max(above, axis=tuple(range(above.ndim - 1)))
    sums = {
        "runs": jnp.ones((), jnp.float32),
        "mean": mean,
        "mean_square": jnp.square(mean),
        "variance": jnp.mean(jnp.square(x - mean)),
        "max_abs": jnp.max(size),
        "dead_fraction": jnp.mean((channels <= 0).astype(jnp.float32)),
    }
    is_pair = len(arguments) == 2 and all(
        is_float(value) and value.shape == output.shape for value in arguments
    )
    return sums | (_sum_statistics(*arguments) if is_pair else {})


def _sum_statistics(shortcut: Array, branch: Array) -> dict[str, Array]:
    shortcut, branch = widened(shortcut), widened(branch)
    return {
        "shortcut": jnp.vdot(shortcut, shortcut),
        "branch": jnp.vdot(branch, branch),
        "product": jnp.vdot(shortcut, branch),
    }


def _real_parts(x: Array) -> Array:
    """The real and imaginary parts of a complex array, stacked on a new first axis."""
    return widened(jnp.stack([x.real, x.imag]) if jnp.iscomplexobj(x) else x)


def _sum_of_squares(x: Any) -> Array:
    """Sum of squared absolute values; 0 for a float0 gradient, which integers have."""
    if x.dtype == jax.dtypes.float0:
        return jnp.zeros((), jnp.float32)
    return jnp.sum(jnp.square(_real_parts(x)))


STATISTICS = Measure(_output_statistics, _sum_of_squares)


def _squares_by_module(tree: Any) -> dict[Path, Array]:
    """Sum of squares of each module's own parameters, by its path."""
    squares: dict[Path, list[Array]] = defaultdict(list)
    for path, leaf in by_path(tree).items():
        squares[path[:-1]] += [_sum_of_squares(leaf)]
    return {path: functools.reduce(jnp.add, each) for path, each in squares.items()}


_MEANS = ("mean", "std", "max_abs", "dead_fraction")
_NORMS = ("weight_norm", "parameter_gradient_norm", "update_ratio")
_UNKNOWN: dict[str, Any] = dict.fromkeys(_MEANS, math.nan)
_NO_SUM: dict[str, Any] = dict.fromkeys(("shortcut_norm", "branch_norm", "branch_ratio", "cosine"))


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
        **(_sum_columns(sums) if known and site.is_sum and "shortcut" in sums else _NO_SUM),
    )


def _parameters_row(path: Path, statistics: dict[str, Any]) -> LayerRow:
    """The row of a module whose output is not measured."""
    return LayerRow(
        layer=path_string(path),
        output="",
        shape=(),
        runs=0,
        **_UNKNOWN,
        gradient_norm=math.nan,
        **_norms(path, statistics),
        **_NO_SUM,
    )


def _means(sums: dict[str, Any]) -> dict[str, float]:
    runs = float(sums["runs"])
    mean = float(sums["mean"]) / runs
    variance = (float(sums["variance"]) + float(sums["mean_square"])) / runs - mean**2
    return {
        "mean": mean,
        "std": math.sqrt(max(variance, 0.0)),
        "max_abs": float(sums["max_abs"]) / runs,
        "dead_fraction": float(sums["dead_fraction"]) / runs,
    }


def _norms(path: Path, statistics: dict[str, Any]) -> dict[str, Any]:
    weights, gradients, updates = (
        _root(statistics[name].get(path)) for name in ("weights", "gradients", "updates")
    )
    ratio = None if updates is None or not weights else updates / weights
    return dict(zip(_NORMS, (weights, gradients, ratio), strict=True))


def _sum_columns(sums: dict[str, Any]) -> dict[str, Any]:
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


_NOT_CALLED = "parameters only: the network does not call it, or it returns no array of floats"
_DERIVATIVE = "its output reaches the loss only through a derivative that the network takes"
_CUSTOM = "inside nn.custom_vjp, whose backward pass is its own"
_NO_INFLUENCE = "nothing leads from it to the loss"


def _reason(site: Site, at: Sequence[Site], statistics: dict[str, Any]) -> str:
    """Why the backward pass did not reach an output, by the gradients of its parameters."""
    if site.in_custom_vjp:
        return _CUSTOM
    below = (
        square
        for path, square in statistics["gradients"].items()
        if path[: len(site.path)] == site.path
    )
    if not any(square > 0 for square in below):
        return _NO_INFLUENCE
    outputs = sum(other.path == site.path for other in at)
    if outputs == 1:
        return _DERIVATIVE
    return f"{_NO_INFLUENCE}, unless through a derivative that the network takes"
