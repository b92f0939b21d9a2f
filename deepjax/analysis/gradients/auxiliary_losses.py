"""Contributions of the main loss and of auxiliary heads' losses to each layer's gradient.

Szegedy et al., "Going deeper with convolutions", 2014 (arXiv:1409.4842), section 5: heads on inner
maps "increase the gradient signal that gets propagated back". A head is any logits that a module
sows into the collection "auxiliary".
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

from deepjax.analysis.core.instrument import instrument
from deepjax.analysis.core.layers import LayerNames, Layers, parameter_layers, selected_leaves
from deepjax.analysis.core.mode import TRAIN, Mode
from deepjax.analysis.core.params import (
    Path,
    path_string,
    real_leaves,
    replace_leaves,
    restored,
    widened,
)
from deepjax.analysis.core.result import Result
from deepjax.analysis.gradients.by_layer import leaves_by_layer, sort_by_call
from deepjax.analysis.network.batch import Batches, mean_over_batches
from deepjax.analysis.network.module import (
    Batch,
    Loss,
    Model,
    apply_module,
    cross_entropy,
    name_of,
    shapes_of,
)
from deepjax.analysis.network.taps import require_layers
from deepjax.analysis.network.task import make_task
from deepjax.backend.conv_layouts import canonicalize_conv_layouts
from deepjax.errors import InputError, require, unknown_name_error

MAIN = "main"


@dataclasses.dataclass(frozen=True)
class LossContribution:
    """The gradient of one loss in one layer."""

    layer: str
    """Path of the module that owns the parameters."""
    loss: str
    """"main", or the head's name in the collection "auxiliary"."""
    norm: float
    """L2 norm of this loss's gradient with respect to the layer's parameters, before the weight."""
    fraction: float
    """weight x norm, divided by the sum of that over all losses; 0 if no loss reaches the layer."""
    cosine: float
    """Between this loss's gradient and the main loss's; NaN if either is 0."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LossContributions(Result):
    """Every loss in every layer, in forward order; the layers of heads are last."""

    mode: Mode
    mode_text: str
    """How the network was set to that mode, and what it samples and writes in evaluation."""
    data_text: str
    """Number of examples, and kind of batch statistics."""
    losses: dict[str, float]
    """Value of each loss, before the weight."""
    weights: dict[str, float]
    layers: tuple[LossContribution, ...]

    @property
    def shared_layers(self) -> tuple[str, ...]:
        """The layers that the main loss and at least one head's loss reach."""
        reached: dict[str, set[bool]] = {}
        for row in self.layers:
            reached.setdefault(row.layer, set()).update(
                {row.loss == MAIN} if row.fraction > 0 else ()
            )
        return tuple(layer for layer, kinds in reached.items() if len(kinds) == 2)

    def summary(self) -> dict[str, Any]:
        """The losses, and the heads' least and greatest fraction in the layers that they share."""
        heads = self._head_fractions()
        losses = {f"{name} loss": value for name, value in self.losses.items()}
        if not heads:
            return losses
        return losses | {"least fraction": min(heads), "greatest fraction": max(heads)}

    def _head_fractions(self) -> list[float]:
        """Of all heads together, in each shared layer."""
        main = {row.layer: row.fraction for row in self.layers if row.loss == MAIN}
        return [1 - main[layer] for layer in self.shared_layers]

    def rows(self) -> list[dict[str, Any]]:
        """One plain dict per layer and loss."""
        return [dataclasses.asdict(row) for row in self.layers]

    def plot(self, ax: Any = None, title: str | None = None) -> Any:
        """Fractions of the gradient by layer, stacked, of the shared layers; returns the Axes."""
        from matplotlib.ticker import PercentFormatter

        from deepjax.analysis.plots import COLORS, canvas, layer_ticks

        layers = list(self.shared_layers)
        fractions = {(row.layer, row.loss): row.fraction for row in self.layers}
        known = [100 * fraction for fraction in self._head_fractions()]
        heads = f"from {min(known):.0f} to {max(known):.0f} %" if known else "0 %"
        finding = f"The heads' losses are {heads} of the gradient they share"
        colors = [COLORS[0], *COLORS[4:0:-1], *COLORS[5:]]
        with canvas(ax, 6.4, 4.2, title) as axes:
            bottom = np.zeros(len(layers))
            for loss, color in zip(self.losses, colors, strict=False):
                heights = np.array([fractions[layer, loss] for layer in layers])
                label = "main loss" if loss == MAIN else f"{loss}, weight {self.weights[loss]:g}"
                bars = {"bottom": bottom, "color": color, "width": 0.85, "label": label}
                axes.bar(range(len(layers)), heights, **bars)
                bottom += heights
            axes.set_title(f"{finding}\n{self.data_text}")
            axes.set(ylim=(0, 1), ylabel="fraction of the norm")
            axes.yaxis.set_major_formatter(PercentFormatter(1))
            layer_ticks(axes, layers)
            axes.legend(loc="lower left", frameon=True, framealpha=0.9)
        return axes


@instrument
def loss_contributions(
    model: Model,
    variables: Any,
    batch: Batches,
    *,
    loss: Loss = cross_entropy,
    mode: Mode = TRAIN,
    layers: Layers = None,
    key: Array | None = None,
    weights: float | Mapping[str, float] = 0.3,
) -> LossContributions:
    """Per layer: norm of each loss's gradient, its fraction, and its cosine with the main loss's.

    Heads are the logits, or tuples of logits, in the collection "auxiliary"; a head's name is its
    path there, and with several logits under one name "name/0", "name/1". An NNX module sows them
    by `self.sow("auxiliary", name, logits)`. Of several batches the gradients of the mean losses
    are compared. layers: rows of these modules' parameters, the only ones that are differentiated.
    weights: of the heads' losses, one number or by name (heads without one: 0.3, as in GoogLeNet);
    the main loss has weight 1.
    Raises InputError for a network without heads, a function, which has no layers, an unknown head
    or layer, a negative weight, and a batch that does not fit.
    Cost: one forward pass and a backward pass per loss, compiled once per network and shape; memory
    losses x parameters.
    Source: Szegedy et al. 2014, section 5; Lee et al. 2015 (arXiv:1409.5185).
    """
    task = make_task(model, variables, batch, loss=loss, mode=mode, key=key)
    network, data, train = task.network, task.data, mode.train
    require_layers(network, "loss_contributions")
    # Without the given "auxiliary", to which sow would append.
    variables = {name: tree for name, tree in task.variables.items() if name != "auxiliary"}
    names = _names(network, loss, train, *shapes_of((variables, data.first)))
    scales = _weights(weights, names)
    chosen = parameter_layers(layers, variables["params"])
    options: dict[str, Any] = {"model": network, "loss": loss, "train": train, "layers": chosen}
    found = _compare(variables, data.stacked, task.key, **options)
    values, by_layer = jax.device_get(found)
    rows = []
    for layer in sort_by_call(by_layer, network, variables, data.first, train):
        norms, cosines = by_layer[layer]
        total = sum(scales[name] * float(norm) for name, norm in zip(names, norms, strict=True))
        for name, norm, cosine in zip(names, norms, cosines, strict=True):
            fraction = scales[name] * float(norm) / total if total else 0.0
            path = path_string(layer)
            rows.append(LossContribution(path, name, float(norm), fraction, float(cosine)))
    return LossContributions(
        mode=mode,
        mode_text=task.mode_text,
        data_text=task.data_text,
        losses={name: float(value) for name, value in zip(names, values, strict=True)},
        weights=scales,
        layers=tuple(rows),
    )


@functools.lru_cache(maxsize=256)
def _names(
    model: Model, loss: Loss, train: bool, structure: Any, shapes: tuple[Any, ...]
) -> tuple[str, ...]:
    """The names of the main loss and the heads, in the order of `_losses`; nothing is computed."""
    variables, batch = jax.tree.unflatten(structure, shapes)
    names: list[str] = []

    def losses(variables: Any, batch: Batch) -> list[Array]:
        named = _losses(model, variables, batch, jax.random.key(0), loss, train)
        names.extend(named)  # here, since JAX would return the dict with sorted keys
        return list(named.values())

    shapes_of_losses = [value.shape for value in jax.eval_shape(losses, variables, batch)]
    if len(names) == 1:
        raise InputError(
            f"{name_of(model)} has no auxiliary heads: its call sows nothing into the collection "
            "'auxiliary'; build it with heads, or sow their logits there"
        )
    for name, shape in zip(names, shapes_of_losses, strict=True):
        given = f"of shape {shape} for {name}"
        require(shape == (), "loss", given, "a scalar, such as the mean over the examples")
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
    model: Model, variables: Any, batch: Batch, key: Array, loss: Loss, train: bool
) -> dict[str, Array]:
    outputs, changed = apply_module(model, variables, batch, train, key, sow=("auxiliary",))
    heads = {}
    for path, logits in flatten_dict(dict(changed.get("auxiliary", {})), sep="/").items():
        several = isinstance(logits, tuple | list) and len(logits) > 1
        for i, one in enumerate(logits if isinstance(logits, tuple | list) else (logits,)):
            heads[f"{path}/{i}" if several else str(path)] = loss(one, batch)
    return {MAIN: loss(outputs, batch)} | heads


@functools.partial(jax.jit, static_argnames=("model", "loss", "train", "layers"))
@canonicalize_conv_layouts
def _compare(
    variables: Any,
    stacked: Any,
    key: Array,
    *,
    model: Model,
    loss: Loss,
    train: bool,
    layers: LayerNames,
) -> tuple[Array, dict[Path, Any]]:
    """The losses; and by layer (norms, cosines with the main loss), each (losses,)."""
    params = variables["params"]
    block = selected_leaves(params, layers)

    def gradients_and_losses(key: Array, batch: Batch) -> tuple[dict[Path, Array], Array]:
        def values(view: dict[Path, Array]) -> tuple[Array, Array]:
            given = {**variables, "params": replace_leaves(params, restored(view, block))}
            named = _losses(model, given, batch, key, loss, train)
            found = jnp.stack([widened(value) for value in named.values()])
            return found, found

        return jax.jacrev(values, has_aux=True)(real_leaves(block))

    gradients, losses = mean_over_batches(gradients_and_losses, stacked, key)
    by_layer = leaves_by_layer(gradients)
    return losses, {layer: _norms_and_cosines(leaves) for layer, leaves in by_layer.items()}


def _norms_and_cosines(leaves: list[Array]) -> tuple[Array, Array]:
    flat = jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in leaves], axis=1)
    norms = jnp.sqrt(jnp.sum(jnp.square(flat), axis=1))
    products = jnp.sum(flat * flat[:1], axis=1)
    both = norms * norms[0]
    return norms, jnp.where(both > 0, products / jnp.where(both > 0, both, 1), jnp.nan)
