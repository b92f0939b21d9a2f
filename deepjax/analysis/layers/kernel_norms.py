"""Norms of kernels by layer, of a gradient tree at hand, and the order of the kernels' layers."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from deepjax.analysis.core.calls import path_of
from deepjax.analysis.core.module import Model, initialise
from deepjax.analysis.core.params import by_path, path_string, squares


def kernel_norms(gradients: Any) -> dict[str, Array]:
    """L2 norm of every leaf of two or more axes (kernels of conv and dense layers), by its path.

    gradients: any params-like tree of nested dicts, inside or outside jit: gradients, updates or
    the parameters themselves. The norms are float32, or float64 for such leaves; complex leaves
    count with |z|^2. Blocks stacked by a scan have one norm over all of them; their biases and
    scales do not count as kernels.
    """
    return {
        path_string(path).removesuffix("/kernel"): jnp.sqrt(squares(leaf))
        for path, leaf in by_path(gradients).items()
        if leaf.ndim >= 2 and path[-1] not in ("bias", "scale")
    }


def kernel_order(model: Model, input_shape: tuple[int, ...]) -> list[str]:
    """Paths of the layers that own a kernel, in forward order, for any unmodified linen module.

    input_shape: (height, width, channels). Nothing is computed.
    """
    called: dict[str, None] = {}

    def note(
        function: Any, arguments: Any, keywords: Any, context: nn.module.InterceptorContext
    ) -> Any:
        output = function(*arguments, **keywords)
        if context.method_name == "__call__" and context.module.has_variable("params", "kernel"):
            called.setdefault(path_of(context.module))
        return output

    with nn.intercept_methods(note):
        jax.eval_shape(
            lambda images: initialise(model, images),
            jax.ShapeDtypeStruct((1, *input_shape), jnp.float32),
        )
    return list(called)
