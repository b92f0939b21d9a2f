"""Gradient norms by layer: of a gradient tree that is at hand, at no further pass through the network."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict
from jax import Array

from deepjax.analysis.forward import Model, initialise


def kernel_norms(gradients: Any) -> dict[str, Array]:
    """L2 norm of every leaf of two or more axes (kernels of convolutions and dense layers), float32, by its path.

    Works on any params-like tree of nested dicts, inside or outside jit: gradients, updates or the parameters themselves.
    Of blocks that a scan has stacked it is the norm over all of them; their biases and scales are not taken for kernels.
    """
    flat: dict[str, Any] = flatten_dict(gradients, sep="/")  # type: ignore[assignment]  # flax types the nesting, not the result
    return {
        path.removesuffix("/kernel"): jnp.sqrt(jnp.sum(jnp.square(leaf.astype(jnp.float32))))
        for path, leaf in flat.items()
        if leaf.ndim >= 2 and path.split("/")[-1] not in ("bias", "scale")
    }


def kernel_order(model: Model, input_shape: tuple[int, ...]) -> list[str]:
    """Paths of the layers that own a kernel, in the order in which the forward pass calls them.

    Found by linen's method interception under abstract evaluation, so any module works unmodified and nothing is computed.
    input_shape: (height, width, channels).
    """
    called: list[str] = []

    def note(function: Any, arguments: Any, keywords: Any, context: nn.module.InterceptorContext) -> Any:
        output = function(*arguments, **keywords)
        path = "/".join(context.module.path)
        if context.method_name == "__call__" and context.module.has_variable("params", "kernel") and path not in called:
            called.append(path)
        return output

    with nn.intercept_methods(note):
        jax.eval_shape(lambda images: initialise(model, images), jax.ShapeDtypeStruct((1, *input_shape), jnp.float32))
    return called
