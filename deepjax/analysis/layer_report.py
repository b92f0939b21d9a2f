"""What activations and gradients do, layer by layer, in one pass through any linen module: `trace`."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.core import Tracer

from deepjax.analysis.calls import is_float
from deepjax.analysis.forward import Batch, Loss, Rngs, cross_entropy, hashable
from deepjax.analysis.loops import fast_loops
from deepjax.analysis.params import by_path, check_like, name_of, squares, sum_dtype, widened
from deepjax.analysis.taps import Measure, Site, chosen, measured, one_run, sites
from deepjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class LayerRow:
    """One layer. Of a layer that runs several times (shared, or inside a scan) all but the norms are means over its runs."""

    layer: str
    """Path of the module, as in the parameters; "" is the network."""
    shape: tuple[int, ...]
    """Of its output."""
    runs: int
    """How often it ran; 0: nothing leads from it to the loss, and nothing is known of its output."""
    mean: float
    deviation: float
    """Mean and standard deviation of the output over all its entries."""
    largest: float
    """Largest absolute value of the output."""
    dead: float
    """Share of channels (last axis) that are nowhere above 0 in the batch: after a ReLU, or under the one that follows."""
    gradient_norm: float
    """L2 norm of the loss's gradient with respect to the output, all examples together."""
    weight_norm: float | None
    parameter_gradient_norm: float | None
    """L2 norms of the layer's own parameters and of the loss's gradient with respect to them; None where it has none."""
    update_ratio: float | None
    """||update|| / ||parameters||; None without `updates`."""
    shortcut_norm: float | None
    branch_norm: float | None
    branch_ratio: float | None
    cosine: float | None
    """Of a sum of (shortcut, branch): their L2 norms, ||branch|| / ||shortcut||, and the cosine between them; else None."""


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """Every layer in the order in which the forward pass ends it, and the loss of the batch."""

    loss: float
    train: bool
    """Whether batch norm used the batch's statistics, and dropout dropped."""
    layers: tuple[LayerRow, ...]

    def rows(self) -> list[dict[str, Any]]:
        """A plain dict a layer."""
        return [dataclasses.asdict(row) for row in self.layers]

    def plot(self) -> Any:
        """Four panels against depth: outputs, dead channels, gradients, residual branches; a matplotlib figure."""
        from deepjax.analysis.layer_figure import draw

        return draw(self)

    def __repr__(self) -> str:
        """A table; columns that no layer fills are left out."""
        columns = [[name, *cells] for name, cells in _columns(self.layers).items() if any(cells)]
        widths = [max(map(len, column)) for column in columns]
        lines = ["  ".join(map(_aligned, cells, widths, range(len(cells)))) for cells in zip(*columns, strict=True)]
        return "\n".join([f"loss {self.loss:.4f}, in {'training' if self.train else 'evaluation'} mode", *lines])


def trace(
    model: nn.Module,
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
    Under `nn.remat`, `nn.scan` and `nn.vmap` too; a scanned block has one row for all its runs. Compiled once for a network, loss
    and shapes: pass the same `loss` function again, not a new lambda.
    Cost: one forward and one backward pass and a few numbers a layer. Raises InputError for an unknown layer, a batch that does not
    fit, a loss that is not a scalar, updates unlike the parameters, and inside `jax.jit`.
    """
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((variables, batch))):
        raise InputError("trace gives numbers on the host and cannot run inside jax.jit; allowed there: taps, layer_statistics")
    model = hashable(model)
    if updates is not None:
        check_like("updates", updates, variables["params"])
    at = chosen(sites(model, variables, batch, loss, train, rngs), layers)
    found = jax.device_get(_statistics(variables, batch, rngs, updates, model=model, loss=loss, train=train, at=at))
    return report(found, at, train)


@functools.partial(jax.jit, static_argnames=("model", "loss", "train", "at"))
@fast_loops
def _statistics(
    variables: Any, batch: Batch, rngs: Rngs, updates: Any, *, model: nn.Module, loss: Loss, train: bool, at: tuple[Site, ...]
) -> dict[str, Any]:
    return layer_statistics(model, variables, batch, loss, train, rngs, at, lambda gradients: updates)


def layer_statistics(
    model: nn.Module,
    variables: Any,
    batch: Batch,
    loss: Loss,
    train: bool,
    rngs: Rngs,
    at: Sequence[Site],
    updates_of: Callable[[Any], Any] = lambda gradients: None,
) -> dict[str, Any]:
    """What `report` turns into rows: pure, for use inside a compiled function. `updates_of`: gradients -> updates, or None."""
    value, gradients, statistics = measured(model, variables, batch, loss, train, rngs, at, STATISTICS)
    updates = updates_of(gradients)
    norms = {"weights": _layer_squares(variables["params"]), "gradients": _layer_squares(gradients)}
    return {"loss": value, "outputs": statistics, **norms, "updates": {} if updates is None else _layer_squares(updates)}


def report(found: dict[str, Any], at: Sequence[Site], train: bool) -> LayerReport:
    """The rows of numbers that are on the host."""
    return LayerReport(float(found["loss"]), train, tuple(_row(site, found) for site in at))


def _of_output(arguments: tuple[Any, ...], output: Array) -> dict[str, Array]:
    x = widened(output)
    mean = jnp.mean(x)
    channels = jnp.max(x, axis=tuple(range(x.ndim - 1)))
    sums = {
        "runs": one_run(output),
        "mean": mean,
        "mean_square": jnp.square(mean),
        "variance": jnp.mean(jnp.square(x - mean)),
        "largest": jnp.max(jnp.abs(x)),
        "dead": jnp.mean((channels <= 0).astype(jnp.float32)),
    }
    return sums | (_of_sum(*arguments) if len(arguments) == 2 and _alike(*arguments, output) else {})


def _alike(first: Any, second: Any, output: Array) -> bool:
    return all(is_float(value) and value.shape == output.shape for value in (first, second))


def _of_sum(shortcut: Array, branch: Array) -> dict[str, Array]:
    shortcut, branch = widened(shortcut), widened(branch)
    return {"shortcut": jnp.vdot(shortcut, shortcut), "branch": jnp.vdot(branch, branch), "product": jnp.vdot(shortcut, branch)}


def _of_cotangent(cotangent: Array) -> Array:
    return squares(cotangent)


STATISTICS = Measure(_of_output, _of_cotangent)


def _layer_squares(tree: Any) -> dict[str, Array]:
    """Sum of squares of each module's own leaves, by its path."""
    totals: dict[str, Array] = {}
    dtype = sum_dtype(*jax.tree.leaves(tree))
    for path, leaf in by_path(tree).items():
        layer, total = name_of(path[:-1]), squares(leaf).astype(dtype)
        totals[layer] = totals[layer] + total if layer in totals else total
    return totals


def _row(site: Site, found: dict[str, Any]) -> LayerRow:
    sums, gradient_square = found["outputs"][site.path]
    runs = max(float(sums["runs"]), 1.0)
    mean = float(sums["mean"]) / runs
    variance = (float(sums["variance"]) + float(sums["mean_square"])) / runs - mean**2
    weights, gradients, updates = (_root(found[name].get(site.path)) for name in ("weights", "gradients", "updates"))
    known = sums["runs"] > 0
    return LayerRow(
        layer=site.path,
        shape=site.shape,
        runs=int(sums["runs"]),
        mean=mean if known else math.nan,
        deviation=math.sqrt(max(variance, 0.0)) if known else math.nan,
        largest=float(sums["largest"]) / runs if known else math.nan,
        dead=float(sums["dead"]) / runs if known else math.nan,
        gradient_norm=math.sqrt(float(gradient_square)),
        weight_norm=weights,
        parameter_gradient_norm=gradients,
        update_ratio=None if updates is None or not weights else updates / weights,
        **(_sum_row(sums) if known and site.is_sum and "shortcut" in sums else dict.fromkeys(_OF_SUMS)),
    )


_OF_SUMS = ("shortcut_norm", "branch_norm", "branch_ratio", "cosine")


def _sum_row(sums: dict[str, Any]) -> dict[str, float | None]:
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
        return ["" if value is None else f"{value:.3g}" for value in values]

    return {
        "layer": [row.layer or "(network)" for row in rows],
        "shape": ["x".join(map(str, row.shape[1:])) for row in rows],
        "runs": [str(row.runs) if row.runs != 1 else "" for row in rows],
        "mean": numbers("mean"),
        "deviation": numbers("deviation"),
        "dead": [f"{100 * row.dead:.0f} %" if row.runs else "-" for row in rows],
        "gradient": numbers("gradient_norm"),
        "weights": numbers("weight_norm"),
        "their gradient": numbers("parameter_gradient_norm"),
        "update ratio": numbers("update_ratio"),
        "branch ratio": numbers("branch_ratio"),
    }


def _aligned(cell: str, width: int, place: int) -> str:
    return cell.rjust(width) if place else cell.ljust(width)
