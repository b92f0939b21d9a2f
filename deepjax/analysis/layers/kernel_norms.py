"""Norms of kernels by layer, of a gradient tree at hand, and the order of the kernels' layers."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from deepjax.analysis.core.instrument import instrument
from deepjax.analysis.core.mode import EVAL, Mode, require_mode
from deepjax.analysis.core.params import by_path, path_string, squares
from deepjax.analysis.network.adapter import Adapter, Inputs
from deepjax.analysis.network.calls import intercept_network
from deepjax.analysis.network.input_shapes import InputShape, input_shapes, misfit_error
from deepjax.analysis.network.layer import Layer, Method
from deepjax.analysis.network.module import Model, apply_module, initialise, network_of
from deepjax.analysis.network.taps import require_layers
from deepjax.errors import InputError


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


@instrument
def kernel_order(model: Model, input_shape: InputShape, *, mode: Mode = EVAL) -> list[str]:
    """Paths of the layers that own a kernel, in forward order, of a network of linen or NNX.

    input_shape: (height, width, channels), or as `InputShape` says. mode: of an NNX module the
    layers that this mode calls; initialisation of a linen module calls all, also auxiliary heads.
    Nothing is computed. Raises InputError for a wrong shape, and for a function, which has no
    layers.
    """
    network, train = network_of(model), require_mode(mode).train
    require_layers(network, "kernel_order")
    called: dict[str, None] = {}

    def around(layer: Layer, method: Method, call: Any, *arguments: Any) -> Any:
        output = call()
        if method.name == "__call__":
            called.setdefault(layer.label)
        return output

    def initialised(inputs: Inputs) -> Any:
        with intercept_network(around):
            variables = initialise(network, inputs)
            if isinstance(network.module, Adapter):  # initialise does not call it
                variables = jax.tree.map(lambda each: jnp.zeros(each.shape, each.dtype), variables)
                apply_module(network, variables, (inputs, None), train)
            return variables

    inputs = input_shapes(network, input_shape)
    try:
        variables = jax.eval_shape(initialised, inputs)
    except InputError:
        raise
    except Exception as error:  # anything that Flax, JAX or the network raises about shapes
        raise misfit_error(network, inputs, error) from error
    owners = {
        path_string(path[:-1]) for path in by_path(variables["params"]) if path[-1] == "kernel"
    }
    return [path for path in called if path in owners]
