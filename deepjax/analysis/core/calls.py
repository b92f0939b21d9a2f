"""The calls of a network's modules in a forward pass, by linen's method interception.

The network is not changed.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from deepjax.analysis.core.module import (
    Model,
    apply_module,
    as_static,
    no_loss,
    shapes_of,
    validate_inputs,
)
from deepjax.analysis.core.nn_jit import is_in_network, is_in_transform

Visit = Callable[[nn.Module, tuple[Any, ...], Any, bool], None]
"""(module, positional arguments, output, whether inside a linen transform), at a call's end."""


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
class ModuleOutput:
    """One array of real or complex floats among the values that a call of a module returns."""

    module: nn.Module
    output: str
    """"" if `__call__` returns just this array; else method and key, as in ".encode()['mean']"."""
    value: jax.Array
    arguments: tuple[Any, ...]
    """Positional arguments of the call; for a residual sum also shortcut and branch by keyword."""
    in_transform: bool
    """Whether inside nn.scan or another transform of linen."""


def intercept_network(
    around: Callable[[nn.Module, nn.module.InterceptorContext, Callable[[], Any], Any, Any], Any],
) -> Any:
    """A context in which `around` is called in place of every method of the network's modules.

    around: (module, context, call, positional arguments, keyword arguments) -> returned value;
    `call()` runs the method. Modules that the network applies with variables of their own
    (`module.apply`) are not its layers, and are not intercepted.
    """

    def intercept(
        function: Any, arguments: Any, keywords: Any, context: nn.module.InterceptorContext
    ) -> Any:
        call = functools.partial(function, *arguments, **keywords)
        if not is_in_network(context.module):
            return call()
        return around(context.module, context, call, arguments, keywords)

    return nn.intercept_methods(intercept)


def intercept_outputs(act: Callable[[ModuleOutput], jax.Array]) -> Any:
    """A context in which `act` replaces every array that a module of the network returns.

    The network is the one called by `module.run`. Includes all methods except those that a module
    calls on itself, such as `super().__call__`. Functions lifted by linen (`nn.scan(function)`) are
    not methods.
    """
    open_calls: list[tuple[Any, Any]] = []  # (module, method)

    def around(
        module: nn.Module, context: nn.module.InterceptorContext, call: Any, given: Any, named: Any
    ) -> Any:
        name = context.method_name
        if name == "setup" or not hasattr(type(module), name):
            return call()
        method = ((module.path, type(module), module.name), context.orig_method.func)
        on_itself = any(
            which == method[0] and other is not method[1] for which, other in open_calls
        )
        open_calls.append(method)
        try:
            returned = call()
        finally:
            open_calls.pop()
        if on_itself:
            return returned
        arguments = bind_sum_arguments(module, given, named) if name == "__call__" else given
        inside = is_in_transform(module)
        return map_arrays(
            lambda value, at: act(ModuleOutput(module, at, value, arguments, inside)),
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


def visit_calls(model: Model, variables: Any, inputs: Any, train: bool, visit: Visit) -> Any:
    """Run the network and call `visit` at the end of each module's `__call__`, innermost first.

    inputs: an array, or a tuple of arrays. Returns the network's output. Cost: one forward pass.
    """

    def act(found: ModuleOutput) -> jax.Array:
        if not found.output and is_float(found.value):
            visit(found.module, found.arguments, found.value, found.in_transform)
        return found.value

    with intercept_outputs(act):
        return apply_module(model, variables, (inputs, None), train)[0]


def all_calls(model: Model, variables: Any, inputs: Any, train: bool) -> tuple[Call, ...]:
    """Every call, in the order in which they end, by abstract evaluation; cached by shapes.

    Raises InputError where the network cannot take the inputs.
    """
    return _all_calls(as_static(model), train, *shapes_of((variables, inputs)))


@functools.lru_cache(maxsize=256)
def _all_calls(
    model: Model, train: bool, structure: Any, shapes: tuple[Any, ...]
) -> tuple[Call, ...]:
    found: list[Call] = []
    variables, inputs = jax.tree.unflatten(structure, shapes)
    validate_inputs(model, variables, (inputs, None), no_loss, train)

    def record(module: nn.Module, arguments: tuple[Any, ...], output: Any, inside: bool) -> None:
        found.append(Call(path_of(module), type(module).__name__, output.shape, inside))

    jax.eval_shape(
        lambda variables, inputs: visit_calls(model, variables, inputs, train, record),
        variables,
        inputs,
    )
    # nn.scan traces its body more than once.
    inside = dict.fromkeys(call for call in found if call.in_transform)
    return tuple(call for call in found if not call.in_transform or inside.pop(call, True) is None)


def path_of(module: nn.Module) -> str:
    """The module's path as in the parameters."""
    return "/".join(module.path)


def is_sum(module: nn.Module) -> bool:
    """Whether it is the sum of a residual block: its arguments are named (shortcut, branch)."""
    return tuple(inspect.signature(type(module).__call__).parameters)[1:] == ("shortcut", "branch")


def bind_sum_arguments(
    module: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any]
) -> tuple[Any, ...]:
    """The positional arguments of a call; for a sum also shortcut and branch given by keyword."""
    if not is_sum(module):
        return arguments
    return (*arguments, *(keywords[name] for name in ("shortcut", "branch")[len(arguments) :]))


def is_float(value: Any) -> bool:
    """Whether it is one array of floats."""
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jnp.floating)
