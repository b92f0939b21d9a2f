"""The calls of a network's modules in a forward pass, seen by linen's method interception; the network is not changed."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import tracers

from deepjax.analysis.core.module import Model, hashable, no_loss, run, shapes_of, validate_inputs
from deepjax.analysis.core.nn_jit import RUN

Visit = Callable[[nn.Module, tuple[Any, ...], Any, bool], None]
"""(module, positional arguments, output, whether inside nn.scan or another transformation of linen) of a call that ends."""


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
    """Whether it runs inside nn.scan, nn.remat or the like, where its output cannot be taken out of the forward pass."""


@dataclasses.dataclass(frozen=True, eq=False)
class Ended:
    """One array of real or complex floats among what a call of a module returns."""

    module: nn.Module
    output: str
    """Which: "" where `__call__` returns just this array; else the method, if another, and the place: ".encode()['mean']"."""
    value: jax.Array
    arguments: tuple[Any, ...]
    """The positional arguments of the call; a sum's shortcut and branch also where they are given by name."""
    inside: bool
    """Whether inside nn.scan or another transformation of linen."""


def watched(act: Callable[[Ended], jax.Array]) -> Any:
    """A context in which every array that a call of `forward.run`'s network returns is replaced by what `act` returns for it.

    All methods but those that a module calls on itself, such as `super().__call__`. Modules that the network applies with variables
    of their own (`module.apply`) are not its layers, and functions that linen lifts (`nn.scan(function)`) are no methods.
    """
    open_calls: list[tuple[Any, Any]] = []  # (module, method)

    def intercept(
        function: Any, arguments: Any, keywords: Any, context: nn.module.InterceptorContext
    ) -> Any:
        module, name = context.module, context.method_name
        if (
            module.scope is None
            or not module.scope.has_flag(RUN)
            or name == "setup"
            or not hasattr(type(module), name)
        ):
            return function(*arguments, **keywords)
        method = ((module.path, type(module), module.name), context.orig_method.func)
        on_itself = any(
            which == method[0] and other is not method[1] for which, other in open_calls
        )
        open_calls.append(method)
        try:
            returned = function(*arguments, **keywords)
        finally:
            open_calls.pop()
        if on_itself:
            return returned
        given = in_order(module, arguments, keywords) if name == "__call__" else arguments
        inside = tracers.current_trace() != module.scope.get_flag(RUN).trace
        place = "" if name == "__call__" else f".{name}()"
        return each_array(
            lambda value, at: act(Ended(module, at, value, given, inside)), returned, place
        )

    return nn.intercept_methods(intercept)


def each_array(act: Callable[[jax.Array, str], jax.Array], value: Any, place: str) -> Any:
    """The tree with `act` of its arrays of floats. Unlike jax.tree.map it keeps the order of a dict's keys."""
    if isinstance(value, jax.Array):
        return (
            act(value, place) if value.size and jnp.issubdtype(value.dtype, jnp.inexact) else value
        )
    children, structure = jax.tree_util.tree_flatten_with_path(
        value, is_leaf=lambda each: each is not value
    )
    if all(child is value for _, child in children):
        return value
    new = structure.unflatten(
        [each_array(act, child, place + jax.tree_util.keystr(key)) for key, child in children]
    )
    return {name: new[name] for name in value} if type(value) is dict else new


def visit_calls(model: Model, variables: Any, inputs: Any, train: bool, visit: Visit) -> Any:
    """Run the network and call `visit` at the end of each module's `__call__`, innermost first. Returns the network's output.

    inputs: an array, or a tuple of arrays. Cost: one forward pass.
    """

    def act(ended: Ended) -> jax.Array:
        if not ended.output and is_float(ended.value):
            visit(ended.module, ended.arguments, ended.value, ended.inside)
        return ended.value

    with watched(act):
        return run(model, variables, (inputs, None), train)[0]


def all_calls(model: Model, variables: Any, inputs: Any, train: bool) -> tuple[Call, ...]:
    """Every call in the order in which they end; nothing is computed, and the answer is kept for the next call with such shapes.

    Raises InputError where the network cannot take the inputs.
    """
    return _all_calls(hashable(model), train, *shapes_of((variables, inputs)))


@functools.lru_cache(maxsize=256)
def _all_calls(
    model: Model, train: bool, structure: Any, shapes: tuple[Any, ...]
) -> tuple[Call, ...]:
    found: list[Call] = []
    variables, inputs = jax.tree.unflatten(structure, shapes)
    validate_inputs(model, variables, (inputs, None), no_loss, train)

    def note(module: nn.Module, arguments: tuple[Any, ...], output: Any, inside: bool) -> None:
        found.append(Call(path_of(module), type(module).__name__, output.shape, inside))

    jax.eval_shape(
        lambda variables, inputs: visit_calls(model, variables, inputs, train, note),
        variables,
        inputs,
    )
    inside = dict.fromkeys(
        call for call in found if call.in_transform
    )  # nn.scan traces its body more than once
    return tuple(call for call in found if not call.in_transform or inside.pop(call, True) is None)


def path_of(module: nn.Module) -> str:
    """The module's path as in the parameters."""
    return "/".join(module.path)


def is_sum(module: nn.Module) -> bool:
    """Whether the call's arguments are named (shortcut, branch), by which a residual block shows what it adds up."""
    return tuple(inspect.signature(type(module).__call__).parameters)[1:] == ("shortcut", "branch")


def in_order(
    module: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any]
) -> tuple[Any, ...]:
    """The positional arguments of a call; a sum's shortcut and branch also where they are given by name."""
    if not is_sum(module):
        return arguments
    return (*arguments, *(keywords[name] for name in ("shortcut", "branch")[len(arguments) :]))


def is_float(value: Any) -> bool:
    """Whether it is one array of floats."""
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jnp.floating)
