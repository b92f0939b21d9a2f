"""The first layer of a network whose output is not finite."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict
from jax import Array


def first_not_finite(model: nn.Module, variables: Any, images: Array, train: bool = False) -> str | None:
    """Path of the first module, in the order of the forward pass, whose output is not finite; "" is the network; None: all are.

    images: (batch, height, width, channels). Any linen module whose call takes (images, train); dropout is drawn from key 0. Blocks
    under a scan are seen as one.
    """
    order: dict[str, None] = {}

    def note(function: Any, arguments: Any, keywords: Any, context: nn.module.InterceptorContext) -> Any:
        output = function(*arguments, **keywords)
        if context.method_name == "__call__":
            order["/".join(context.module.path)] = None
        return output

    def outputs(variables: Any, images: Array) -> dict[str, Array]:
        rngs = {"dropout": jax.random.key(0)}
        _, mutated = model.apply(
            variables, images, train=train, rngs=rngs, capture_intermediates=True, mutable=["intermediates", "batch_stats"]
        )
        flat: Any = flatten_dict(mutated["intermediates"])
        return {"/".join(path[:-1]): _finite(leaf) for path, leaf in flat.items()}

    with nn.intercept_methods(note):
        jax.eval_shape(outputs, variables, images)
    finite = jax.device_get(jax.jit(outputs)(variables, images))
    return next((path for path in order if path in finite and not finite[path]), None)


def _finite(outputs: Any) -> Array:
    """Whether every float of a module's outputs is finite."""
    floats = [leaf for leaf in jax.tree.leaves(outputs) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in floats])) if floats else jnp.ones((), bool)
