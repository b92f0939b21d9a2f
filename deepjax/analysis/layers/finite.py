"""The first layer of a network whose output is not finite."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict
from jax import Array

from deepjax.analysis.core.module import Model, entry, no_loss, run, shapes_of, validate_inputs


def first_nonfinite_layer(
    model: Model, variables: Any, images: Any, train: bool = False
) -> str | None:
    """Path of the first module, in the order of the forward pass, whose output is not finite; "" is the network; None: all are.

    images: what the network takes, an array or a tuple of arrays. Random streams are from key 0. Blocks under nn.scan are seen
    as one, and of what nn.vmap wraps only the whole. Cost: one forward pass, compiled once for a network and shape.
    Raises InputError where the network cannot take the inputs.
    """
    model, variables = entry(model, variables)
    validate_inputs(model, variables, (images, None), no_loss, train)
    finite = jax.device_get(_finite_layers(model, variables, images, train=train))
    order = _order(model, train, *shapes_of((variables, images)))
    return next((path for path in order if path in finite and not finite[path]), None)


@functools.lru_cache(maxsize=256)
def _order(model: Model, train: bool, structure: Any, shapes: tuple[Any, ...]) -> tuple[str, ...]:
    """Paths of the modules in the order in which their first calls end; nothing is computed."""
    variables, images = jax.tree.unflatten(structure, shapes)
    order: dict[str, None] = {}

    def note(
        function: Any, arguments: Any, keywords: Any, context: nn.module.InterceptorContext
    ) -> Any:
        output = function(*arguments, **keywords)
        if context.method_name == "__call__":
            order["/".join(context.module.path)] = None
        return output

    with nn.intercept_methods(note):
        jax.eval_shape(
            lambda variables, images: _outputs(model, variables, images, train), variables, images
        )
    return tuple(order)


@functools.partial(jax.jit, static_argnames=("model", "train"))
def _finite_layers(model: Model, variables: Any, images: Any, *, train: bool) -> dict[str, Array]:
    return {
        path: _finite(outputs)
        for path, outputs in _outputs(model, variables, images, train).items()
    }


def _outputs(model: Model, variables: Any, images: Any, train: bool) -> dict[str, Any]:
    """What each module returned, in all its calls."""
    given = {
        name: tree for name, tree in variables.items() if name != "intermediates"
    }  # what is sown would be added to it
    outputs, changed = run(
        model, given, (images, None), train, sow=("intermediates",), capture=True
    )
    flat: Any = flatten_dict(dict(changed.get("intermediates", {})))
    inner = {"/".join(path[:-1]): leaf for path, leaf in flat.items() if path[-1] == "__call__"}
    return inner | {
        "": outputs
    }  # also where the network is wrapped in nn.vmap, out of which nothing is sown


def _finite(outputs: Any) -> Array:
    """Whether every real or complex float of a module's outputs is finite."""
    floats = [leaf for leaf in jax.tree.leaves(outputs) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return (
        jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in floats]))
        if floats
        else jnp.ones((), bool)
    )
