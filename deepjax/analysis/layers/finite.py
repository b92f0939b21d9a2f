"""The first layer of a network whose output is not finite."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict
from jax import Array

from deepjax.analysis.core.instrument import instrument
from deepjax.analysis.core.mode import EVAL, Mode
from deepjax.analysis.network.adapter import Adapter
from deepjax.analysis.network.batch import Batches
from deepjax.analysis.network.calls import intercept_network
from deepjax.analysis.network.layer import Layer, Method
from deepjax.analysis.network.module import (
    Model,
    apply_module,
    batch_key,
    network_of,
    no_loss,
    shapes_of,
)
from deepjax.analysis.network.nn_jit import sown_values_leave
from deepjax.analysis.network.task import make_task


@instrument
def first_nonfinite_layer(
    model: Model, variables: Any, batch: Batches, *, mode: Mode = EVAL, key: Array | None = None
) -> str | None:
    """Path of the first module, in forward order, whose output is not finite; None if all are.

    batch: also the inputs alone. Of several batches the first with such a layer counts. "" is the
    network itself. Blocks under nn.scan count as one; of a module under nn.vmap only the stacked
    output is seen, of one under nn.WeightNorm that of the norm, and of NNX modules under a
    transform none, nor what the network calls inside jax.jvp or another transform of JAX.
    Raises InputError if the network cannot take the inputs.
    Cost: one forward pass, compiled once per network and shape.
    """
    task = make_task(model, variables, batch, loss=no_loss, mode=mode, key=key)
    order = _call_order(
        task.network, mode.train, *shapes_of((task.variables, task.data.first, task.key))
    )
    for index in range(task.data.batches):
        one = jax.tree.map(lambda leaf, i=index: leaf[i], task.data.stacked)
        own = batch_key(task.key, index, task.data.batches)
        finite = jax.device_get(
            _finite_by_layer(task.network, task.variables, one, own, train=mode.train)
        )
        for path, call in order:
            if not all(finite.get(path, ())[call : call + 1]):
                return path
    return None


@functools.lru_cache(maxsize=256)
def _call_order(
    model: Model, train: bool, structure: Any, shapes: tuple[Any, ...]
) -> tuple[tuple[str, int], ...]:
    """(path of the module, number of the call) in the order in which calls end, without running.

    A module that is called again later must not count before those in between.
    """
    order: list[tuple[str, int]] = []

    def around(layer: Layer, method: Method, call: Any, *arguments: Any) -> Any:
        output = call()
        if method.name == "__call__" and _is_seen(layer):
            order.append((layer.label, sum(path == layer.label for path, _ in order)))
        return output

    with intercept_network(around):
        jax.eval_shape(
            functools.partial(_outputs, model, train=train), *jax.tree.unflatten(structure, shapes)
        )
    return (*order, ("", 0))


def _is_seen(layer: Layer) -> bool:
    is_linen = isinstance(layer.module, nn.Module)
    return sown_values_leave(layer.module) if is_linen else not layer.in_transform


@functools.partial(jax.jit, static_argnames=("model", "train"))
def _finite_by_layer(
    model: Model, variables: Any, batch: Any, key: Array, *, train: bool
) -> dict[str, list[Array]]:
    """By path, for each call."""
    outputs = _outputs(model, variables, batch, key, train)
    return {path: [_is_finite(each) for each in calls] for path, calls in outputs.items()}


Calls = dict[str, tuple[Any, ...]]
"""The outputs of each module's calls, by its path; of a scanned one those of its runs are one."""


def _outputs(model: Model, variables: Any, batch: Any, key: Array, train: bool) -> Calls:
    if isinstance(network_of(model).module, Adapter):
        return _outputs_outside_transforms(model, variables, batch, key, train)
    lost: list[Layer] = []  # open calls whose outputs cannot leave: in jax.jvp or the like

    def around(layer: Layer, method: Method, call: Any, *arguments: Any) -> Any:
        if _is_seen(layer):
            return call()
        lost.append(layer)
        try:
            return call()
        finally:
            lost.pop()

    def captured(module: Any, method: str) -> bool:
        return method == "__call__" and not lost and sown_values_leave(module)

    # Without the given "intermediates", to which sow would append.
    given = {name: tree for name, tree in variables.items() if name != "intermediates"}
    with intercept_network(around):
        outputs, changed = apply_module(
            model, given, batch, train, key, sow=("intermediates",), capture=captured
        )
    flat: Any = flatten_dict(dict(changed.get("intermediates", {})))
    inner = {"/".join(path[:-1]): calls for path, calls in flat.items() if path[-1] == "__call__"}
    # From a network wrapped in nn.vmap nothing is sown.
    return {"": (outputs,)} | inner


def _outputs_outside_transforms(
    model: Model, variables: Any, batch: Any, key: Array, train: bool
) -> Calls:
    found: dict[str, tuple[Any, ...]] = {}

    def around(layer: Layer, method: Method, call: Any, *arguments: Any) -> Any:
        output = call()
        if method.name == "__call__" and _is_seen(layer):
            found[layer.label] = (*found.get(layer.label, ()), output)
        return output

    with intercept_network(around):
        outputs, _ = apply_module(model, variables, batch, train, key)
    return {"": (outputs,)} | found


def _is_finite(outputs: Any) -> Array:
    """Whether every real or complex float of a module's outputs is finite."""
    floats = [leaf for leaf in jax.tree.leaves(outputs) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    if not floats:
        return jnp.ones((), bool)
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in floats]))
