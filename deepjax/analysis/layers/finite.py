"""The first layer of a network whose output is not finite."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict
from jax import Array

from deepjax.analysis.core.calls import path_of
from deepjax.analysis.core.module import (
    Model,
    apply_module,
    entry,
    no_loss,
    shapes_of,
    validate_inputs,
)


def first_nonfinite_layer(
    model: Model, variables: Any, images: Any, train: bool = False
) -> str | None:
    """Path of the first module, in forward order, whose output is not finite; None if all are.

    images: the network's input, an array or a tuple of arrays. "" is the network itself. Random
    streams start from key 0. Blocks under nn.scan count as one; of a module under nn.vmap only the
    stacked output is seen.
    Raises InputError if the network cannot take the inputs.
    Cost: one forward pass, compiled once per network and shape.
    """
    model, variables = entry(model, variables)
    validate_inputs(model, variables, (images, None), no_loss, train)
    finite = jax.device_get(_finite_by_layer(model, variables, images, train=train))
    order = _layer_order(model, train, *shapes_of((variables, images)))
    return next((path for path in order if path in finite and not finite[path]), None)


@functools.lru_cache(maxsize=256)
def _layer_order(
    model: Model, train: bool, structure: Any, shapes: tuple[Any, ...]
) -> tuple[str, ...]:
    """Paths of the modules in the order in which their first calls end; nothing is computed."""
    variables, images = jax.tree.unflatten(structure, shapes)
    order: dict[str, None] = {}

    def note(
        function: Any, arguments: Any, keywords: Any, context: nn.module.InterceptorContext
    ) -> Any:
        output = function(*arguments, **keywords)
        if context.method_name == "__call__":
            order[path_of(context.module)] = None
        return output

    with nn.intercept_methods(note):
        jax.eval_shape(
            lambda variables, images: _outputs(model, variables, images, train), variables, images
        )
    return tuple(order)


@functools.partial(jax.jit, static_argnames=("model", "train"))
def _finite_by_layer(model: Model, variables: Any, images: Any, *, train: bool) -> dict[str, Array]:
    outputs = _outputs(model, variables, images, train)
    return {path: _is_finite(output) for path, output in outputs.items()}


def _outputs(model: Model, variables: Any, images: Any, train: bool) -> dict[str, Any]:
    """The outputs of each module, from all its calls, by its path."""
    # Without the given "intermediates", to which sow would append.
    given = {name: tree for name, tree in variables.items() if name != "intermediates"}
    outputs, changed = apply_module(
        model, given, (images, None), train, sow=("intermediates",), capture=True
    )
    flat: Any = flatten_dict(dict(changed.get("intermediates", {})))
    inner = {"/".join(path[:-1]): leaf for path, leaf in flat.items() if path[-1] == "__call__"}
    # "" also for a network wrapped in nn.vmap, from which nothing is sown.
    return inner | {"": outputs}


def _is_finite(outputs: Any) -> Array:
    """Whether every real or complex float of a module's outputs is finite."""
    floats = [leaf for leaf in jax.tree.leaves(outputs) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    if not floats:
        return jnp.ones((), bool)
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in floats]))
