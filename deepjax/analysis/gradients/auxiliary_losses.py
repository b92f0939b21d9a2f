"""Which loss reaches which layer: the main loss and those of auxiliary heads, each by its own gradient.

Szegedy et al., "Going deeper with convolutions", 2014 (arXiv:1409.4842), section 5: heads on inner maps "increase the gradient
signal that gets propagated back". A head is whatever logits a module sows into the collection "auxiliary".
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax import Array

from deepjax.analysis.core.module import (
    Batch,
    Loss,
    Model,
    cross_entropy,
    entry,
    mode_text,
    name_of,
    run,
    shapes_of,
    validate_inputs,
)
from deepjax.analysis.core.params import Path, as_real, path_string, restored, widened
from deepjax.analysis.gradients.per_example import by_layer, call_order
from deepjax.errors import InputError, require, unknown_name_error

MAIN = "main"


@dataclasses.dataclass(frozen=True)
class Share:
    """One loss in one layer."""

    layer: str
    """Path of the module that owns the parameters."""
    loss: str
    """"main", or the head's name in the collection "auxiliary"."""
    norm: float
    """L2 norm of this loss's gradient by the layer's parameters, before the weight."""
    share: float
    """weight x norm over the sum of that over all losses; 0 where no loss reaches the layer."""
    cosine: float
    """Between this loss's gradient and the main loss's; NaN where either is 0."""


@dataclasses.dataclass(frozen=True)
class LossContributions:
    """Every layer in the order of the forward pass, those of heads last, and in each every loss."""

    train: bool
    losses: dict[str, float]
    """Value of each loss, before the weight."""
    weights: dict[str, float]
    layers: tuple[Share, ...]
    mode: str = ""
    """How the network was set to that mode, and what it draws and writes in evaluation."""

    @property
    def shared(self) -> tuple[str, ...]:
        """The layers that both the main loss and at least one head's loss reach."""
        reached: dict[str, set[bool]] = {}
        for row in self.layers:
            reached.setdefault(row.layer, set()).update({row.loss == MAIN} if row.share > 0 else ())
        return tuple(layer for layer, kinds in reached.items() if len(kinds) == 2)

    def rows(self) -> list[dict[str, Any]]:
        """A plain dict a layer and loss."""
        return [dataclasses.asdict(row) for row in self.layers]

    def plot(self, ax: Any = None) -> Any:
        """Shares stacked by layer; returns the matplotlib Axes."""
        from matplotlib.ticker import PercentFormatter

        from deepjax.analysis.plots import COLORS, canvas, layer_ticks

        layers = list(self.shared)
        with canvas(ax, 6.4, 4.2) as axes:
            bottom = np.zeros(len(layers))
            for loss, color in zip(
                self.losses, [COLORS[0], *COLORS[4:0:-1], *COLORS[5:]], strict=False
            ):
                shares = {row.layer: row.share for row in self.layers if row.loss == loss}
                heights = np.array([shares[layer] for layer in layers])
                label = "main loss" if loss == MAIN else f"{loss}, weight {self.weights[loss]:g}"
                axes.bar(
                    range(len(layers)), heights, bottom=bottom, color=color, width=0.85, label=label
                )
                bottom += heights
            main = [
                row.share for row in self.layers if row.loss == MAIN and row.layer in self.shared
            ]
            least = (
                f"from {100 * (1 - max(main)):.0f} to {100 * (1 - min(main)):.0f} %"
                if main
                else "0 %"
            )
            axes.set(
                title=f"The heads' losses are {least} of the gradient they share",
                ylim=(0, 1),
                ylabel="share of the norm",
            )
            axes.yaxis.set_major_formatter(PercentFormatter(1))
            layer_ticks(axes, layers)
            axes.legend(loc="lower left", frameon=True, framealpha=0.9)
        return axes


def loss_contributions(
    model: Model,
    variables: Any,
    batch: Batch,
    *,
    weights: float | Mapping[str, float] = 0.3,
    loss: Loss = cross_entropy,
    train: bool = True,
) -> LossContributions:
    """Per layer: norm of each loss's gradient, its share of the total, and its cosine with the main loss's.

    batch: as in `forward`. Heads are the logits, or tuples of logits, in the collection "auxiliary"; a head's name is its path
    there, and with several logits under one name "name/0", "name/1". `weights`: of the heads' losses, one number or by name (heads
    that are not named: 0.3, GoogLeNet's); the main loss has weight 1. train=True: statistics of the batch, dropout from key 0.
    Raises InputError for a network without heads, an unknown head, a negative weight, and a batch that does not fit.
    Cost: one forward pass and a backward pass for each loss, compiled once for a network and shape; memory losses x parameters.
    Source: Szegedy et al. 2014, section 5; Lee et al. 2015 (arXiv:1409.5185).
    """
    model, variables = entry(model, variables)
    variables = {
        name: tree for name, tree in variables.items() if name != "auxiliary"
    }  # else sow would append to it
    validate_inputs(model, variables, batch, loss, train)
    names = _names(model, loss, train, *shapes_of((variables, batch)))
    scales = _weights(weights, names)
    values, found = jax.device_get(_measure(model, variables, batch, loss=loss, train=train))
    rows = []
    for layer in call_order(model, variables, batch, train, found):
        norms, cosines = found[layer]
        total = sum(scales[name] * float(norm) for name, norm in zip(names, norms, strict=True))
        for name, norm, cosine in zip(names, norms, cosines, strict=True):
            rows.append(
                Share(
                    path_string(layer),
                    name,
                    float(norm),
                    scales[name] * float(norm) / total if total else 0.0,
                    float(cosine),
                )
            )
    return LossContributions(
        train,
        {name: float(value) for name, value in zip(names, values, strict=True)},
        scales,
        tuple(rows),
        mode_text(model, variables, batch, train),
    )


@functools.lru_cache(maxsize=256)
def _names(
    model: Model, loss: Loss, train: bool, structure: Any, shapes: tuple[Any, ...]
) -> tuple[str, ...]:
    """Main and the heads in the order of `_losses`; nothing is computed."""
    variables, batch = jax.tree.unflatten(structure, shapes)
    names: list[str] = []

    def losses(variables: Any, batch: Batch) -> list[Array]:
        found = _losses(model, variables, batch, loss, train)
        names.extend(found)  # here, for what JAX returns has its keys sorted
        return list(found.values())

    returned = [value.shape for value in jax.eval_shape(losses, variables, batch)]
    if len(names) == 1:
        raise InputError(
            f"{name_of(model)} has no auxiliary heads: its call sows nothing into the collection 'auxiliary'; "
            "build it with heads, or sow their logits there"
        )
    for name, shape in zip(names, returned, strict=True):
        require(
            shape == (),
            "loss",
            f"of shape {shape} for {name}",
            "a scalar, such as the mean over the examples",
        )
    return tuple(names)


def _weights(weights: float | Mapping[str, float], names: tuple[str, ...]) -> dict[str, float]:
    heads = names[1:]
    given = dict(weights) if isinstance(weights, Mapping) else dict.fromkeys(heads, weights)
    for name, weight in given.items():
        if name not in heads:
            raise unknown_name_error("head", name, heads)
        require(weight >= 0, f"weight of {name}", weight, "0 or more")
    return {MAIN: 1.0} | {name: float(given.get(name, 0.3)) for name in heads}


def _losses(
    model: Model, variables: Any, batch: Batch, loss: Loss, train: bool
) -> dict[str, Array]:
    outputs, changed = run(model, variables, batch, train, sow=("auxiliary",))
    heads = {}
    for path, logits in flatten_dict(dict(changed.get("auxiliary", {})), sep="/").items():
        several = isinstance(logits, tuple | list) and len(logits) > 1
        for i, one in enumerate(logits if isinstance(logits, tuple | list) else (logits,)):
            heads[f"{path}/{i}" if several else str(path)] = loss(one, batch)
    return {MAIN: loss(outputs, batch)} | heads


@functools.partial(jax.jit, static_argnames=("model", "loss", "train"))
def _measure(
    model: Model, variables: Any, batch: Batch, *, loss: Loss, train: bool
) -> tuple[Array, dict[Path, Any]]:
    """The losses, and by layer (norms, cosines with the first), each (losses,)."""
    params = variables["params"]

    def values(view: Any) -> tuple[Array, Array]:
        found = _losses(model, {**variables, "params": restored(view, params)}, batch, loss, train)
        stacked = jnp.stack([widened(value) for value in found.values()])
        return stacked, stacked

    gradients, losses = jax.jacrev(values, has_aux=True)(as_real(params))
    return losses, {layer: _compare(leaves) for layer, leaves in by_layer(gradients).items()}


def _compare(leaves: list[Array]) -> tuple[Array, Array]:
    flat = jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in leaves], axis=1)
    norms = jnp.sqrt(jnp.sum(jnp.square(flat), axis=1))
    products = jnp.sum(flat * flat[:1], axis=1)
    both = norms * norms[0]
    return norms, jnp.where(both > 0, products / jnp.where(both > 0, both, 1), jnp.nan)
