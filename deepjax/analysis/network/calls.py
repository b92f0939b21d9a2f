"""The calls of a network's layers in a forward pass, by interception of methods.

The network is not changed. A layer is a module of linen or NNX.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from deepjax.analysis.network.layer import Around, Layer, Method
from deepjax.analysis.network.module import (
    Batch,
    Model,
    Rngs,
    apply_module,
    network_of,
    no_loss,
    shapes_of,
    validate_inputs,
)
from deepjax.analysis.network.network import Network
from deepjax.analysis.network.nn_jit import is_in_network, is_in_transform
from deepjax.analysis.network.nnx.calls import intercept_nnx

Visit = Callable[[Layer, tuple[Any, ...], Any], None]
"""(layer, positional arguments, output), at a call's end."""


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a module that returns an array of floats."""

    path: str
    """Of the module, as in the parameters; "" is the network."""
    kind: str
    """Name of the module's class."""
    shape: tuple[int, ...]
    """Of the output."""
    in_transform: bool
    """Whether it runs inside nn.scan, nn.remat or the like, which its output cannot leave."""


@dataclasses.dataclass(frozen=True, eq=False)
class LayerOutput:
    """One array of real or complex floats among the values that a call of a layer returns."""

    layer: Layer
    output: str
    """"" if `__call__` returns just this array; else method and key, as in ".encode()['mean']"."""
    value: jax.Array
    arguments: tuple[Any, ...]
    """Positional arguments of the call; for a residual sum also shortcut and branch by keyword."""


@contextlib.contextmanager
def intercept_network(around: Around) -> Iterator[None]:
    """Context: `around` is called in place of every method of the network's modules.

    around: (layer, method, call, positional arguments, keyword arguments) -> returned value;
    `call()` runs the method, `call.func(...)` with other arguments. Modules that the network
    applies with variables of their own (`module.apply`) are not its layers, and are not
    intercepted.
    """

    def intercept(
        function: Any, arguments: Any, keywords: Any, context: nn.module.InterceptorContext
    ) -> Any:
        call = functools.partial(function, *arguments, **keywords)
        module = context.module
        if not is_in_network(module):
            return call()
        layer = Layer(module.path, type(module), module.name, is_in_transform(module), module)
        method = Method(context.method_name, context.orig_method.func)
        return around(layer, method, call, arguments, keywords)

    with nn.intercept_methods(intercept), intercept_nnx(around):
        yield


def intercept_outputs(act: Callable[[LayerOutput], jax.Array]) -> Any:
    """A context in which `act` replaces every array that a layer of the network returns.

    The network is the one called by `apply_module`. Includes all methods except those that a module
    calls on itself, such as `super().__call__`. Functions lifted by linen (`nn.scan(function)`) are
    not methods.
    """
    open_calls: list[tuple[Any, Any]] = []  # (layer, method)

    def around(layer: Layer, method: Method, call: Any, given: Any, named: Any) -> Any:
        name = method.name
        if name == "setup" or not hasattr(layer.type, name):
            return call()
        which = (layer.path, layer.type, layer.name)
        on_itself = any(
            other == which and function is not method.function for other, function in open_calls
        )
        open_calls.append((which, method.function))
        try:
            returned = call()
        finally:
            open_calls.pop()
        if on_itself:
            return returned
        arguments = bind_sum_arguments(layer, given, named) if name == "__call__" else given
        return map_arrays(
            lambda value, at: act(LayerOutput(layer, at, value, arguments)),
            returned,
            "" if name == "__call__" else f".{name}()",
        )

    return intercept_network(around)


def map_arrays(act: Callable[[jax.Array, str], jax.Array], value: Any, path: str) -> Any:
    """The tree with `act(array, path)` in place of its arrays of floats.

    Unlike jax.tree.map it keeps the order of a dict's keys.
    """
    if isinstance(value, jax.Array):
        is_inexact = value.size and jnp.issubdtype(value.dtype, jnp.inexact)
        return act(value, path) if is_inexact else value
    children, structure = jax.tree_util.tree_flatten_with_path(
        value, is_leaf=lambda each: each is not value
    )
    if all(child is value for _, child in children):
        return value
    new = structure.unflatten(
        [map_arrays(act, child, path + jax.tree_util.keystr(key)) for key, child in children]
    )
    return {name: new[name] for name in value} if type(value) is dict else new


def visit_calls(
    model: Model, variables: Any, batch: Batch, train: bool, visit: Visit, rngs: Rngs = None
) -> Any:
    """Run the network and call `visit` at the end of each layer's `__call__`, innermost first.

    Returns the network's output. Cost: one forward pass.
    """

    def act(found: LayerOutput) -> jax.Array:
        if not found.output and is_float(found.value):
            visit(found.layer, found.arguments, found.value)
        return found.value

    with intercept_outputs(act):
        return apply_module(model, variables, batch, train, rngs)[0]


def all_calls(model: Model, variables: Any, batch: Batch, train: bool) -> tuple[Call, ...]:
    """Every call, in the order in which they end, by abstract evaluation; cached by shapes.

    Raises InputError where the network cannot take the batch.
    """
    return _all_calls(network_of(model), train, *shapes_of((variables, batch)))


@functools.lru_cache(maxsize=256)
def _all_calls(
    model: Network, train: bool, structure: Any, shapes: tuple[Any, ...]
) -> tuple[Call, ...]:
    found: list[Call] = []
    variables, batch = jax.tree.unflatten(structure, shapes)
    validate_inputs(model, variables, batch, no_loss, train)

    def record(layer: Layer, arguments: tuple[Any, ...], output: Any) -> None:
        found.append(Call(layer.label, layer.kind, output.shape, layer.in_transform))

    jax.eval_shape(
        lambda variables, batch: visit_calls(model, variables, batch, train, record),
        variables,
        batch,
    )
    # nn.scan traces its body more than once.
    inside = dict.fromkeys(call for call in found if call.in_transform)
    return tuple(call for call in found if not call.in_transform or inside.pop(call, True) is None)


def bind_sum_arguments(
    layer: Layer, arguments: tuple[Any, ...], keywords: Mapping[str, Any]
) -> tuple[Any, ...]:
    """The positional arguments of a call; for a sum also shortcut and branch given by keyword."""
    if not layer.is_sum:
        return arguments
    return (*arguments, *(keywords[name] for name in ("shortcut", "branch")[len(arguments) :]))


def is_float(value: Any) -> bool:
    """Whether it is one array of floats."""
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jnp.floating)
