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

from deepjax.analysis.forward import check, hashable, no_loss, run, shapes_of

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
    inside: bool
    """Whether it runs inside nn.scan, nn.remat or the like, where its output cannot be taken out of the forward pass."""


def visit_calls(model: nn.Module, variables: Any, inputs: Any, train: bool, visit: Visit) -> Any:
    """Run the network and call `visit` at the end of each module's `__call__`, innermost first. Returns the network's output.

    inputs: an array, or a tuple of arrays. Cost: one forward pass.
    """
    base: list[Any] = []  # the trace that the network itself is called in

    def intercept(function: Any, arguments: Any, keywords: Any, context: nn.module.InterceptorContext) -> Any:
        if not base:
            base.append(tracers.current_trace())
        output = function(*arguments, **keywords)
        if context.method_name == "__call__" and is_float(output):
            given = in_order(context.module, arguments, keywords)
            visit(context.module, given, output, tracers.current_trace() != base[0])
        return output

    with nn.intercept_methods(intercept):
        return run(model, variables, (inputs, None), train)[0]


def all_calls(model: nn.Module, variables: Any, inputs: Any, train: bool) -> tuple[Call, ...]:
    """Every call in the order in which they end; nothing is computed, and the answer is kept for the next call with such shapes.

    Raises InputError where the network cannot take the inputs.
    """
    return _all_calls(hashable(model), train, *shapes_of((variables, inputs)))


@functools.lru_cache(maxsize=256)
def _all_calls(model: nn.Module, train: bool, structure: Any, shapes: tuple[Any, ...]) -> tuple[Call, ...]:
    found: list[Call] = []
    variables, inputs = jax.tree.unflatten(structure, shapes)
    check(model, variables, (inputs, None), no_loss, train)

    def note(module: nn.Module, arguments: tuple[Any, ...], output: Any, inside: bool) -> None:
        found.append(Call(path_of(module), type(module).__name__, output.shape, inside))

    jax.eval_shape(lambda variables, inputs: visit_calls(model, variables, inputs, train, note), variables, inputs)
    inside = dict.fromkeys(call for call in found if call.inside)  # nn.scan traces its body more than once
    return tuple(call for call in found if not call.inside or inside.pop(call, True) is None)


def path_of(module: nn.Module) -> str:
    """The module's path as in the parameters."""
    return "/".join(module.path)


def is_sum(module: nn.Module) -> bool:
    """Whether the call's arguments are named (shortcut, branch), by which a residual block shows what it adds up."""
    return tuple(inspect.signature(type(module).__call__).parameters)[1:] == ("shortcut", "branch")


def in_order(module: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> tuple[Any, ...]:
    """The positional arguments of a call; a sum's shortcut and branch also where they are given by name."""
    if not is_sum(module):
        return arguments
    return (*arguments, *(keywords[name] for name in ("shortcut", "branch")[len(arguments) :]))


def is_float(value: Any) -> bool:
    """Whether it is one array of floats."""
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jnp.floating)
