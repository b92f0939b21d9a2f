"""Gradient norms by layer: of a gradient tree that is at hand, at no further pass through the network."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from deepjax.analysis.core.module import Model, initialise
from deepjax.analysis.core.params import by_path, path_string, squares


def kernel_norms(gradients: Any) -> dict[str, Array]:
    """L2 norm of every leaf of two or more axes (kernels of convolutions and dense layers), by its path.

    float32, or float64 of such leaves; of complex ones with |z|^2.

    Works on any params-like tree of nested dicts, inside or outside jit: gradients, updates or the parameters themselves.
    Of blocks that a scan has stacked it is the norm over all of them; their biases and scales are not taken for kernels.
    """
    return {
        path_string(path).removesuffix("/kernel"): jnp.sqrt(squares(leaf))
        for path, leaf in by_path(gradients).items()
        if leaf.ndim >= 2 and path[-1] not in ("bias", "scale")
    }


def kernel_order(model: Model, input_shape: tuple[int, ...]) -> list[str]:
    """Paths of the layers that own a kernel, in the order in which the forward pass calls them.

    Found by linen's method interception under abstract evaluation, so any module works unmodified and nothing is computed.
    input_shape: (height, width, channels).
    """
    called: list[str] = []

    def note(
        function: Any, arguments: Any, keywords: Any, context: nn.module.InterceptorContext
    ) -> Any:
        output = function(*arguments, **keywords)
        path = "/".join(context.module.path)
        if (
            context.method_name == "__call__"
            and context.module.has_variable("params", "kernel")
            and path not in called
        ):
            called.append(path)
        return output

    with nn.intercept_methods(note):
        jax.eval_shape(
            lambda images: initialise(model, images),
            jax.ShapeDtypeStruct((1, *input_shape), jnp.float32),
        )
    return called
