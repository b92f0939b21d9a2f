"""A network as a jaxpr in which every equation knows the module that it belongs to."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from deepjax.analysis.core.calls import intercept_network, path_of
from deepjax.analysis.core.input_shapes import typed_shapes
from deepjax.analysis.core.module import (
    Network,
    apply_module,
    as_static,
    initialise,
    name_of,
    no_loss,
    reason,
    shapes_of,
    validate_inputs,
)
from deepjax.analysis.jaxpr.inner_jaxprs import CONTROL, inner_jaxprs, known_inside
from deepjax.analysis.jaxpr.primitives import WITHOUT_PRODUCTS
from deepjax.analysis.jaxpr.products import PRODUCTS, equation_macs
from deepjax.analysis.jaxpr.trip_count import Known
from deepjax.backend.jax_internals import ClosedJaxpr, Jaxpr, JaxprEqn
from deepjax.backend.lowering import reference_lowering
from deepjax.errors import InputError

OUTPUT = "output of "  # before the path, in the name of the identity that marks a module's output
_MARK = re.compile(r"<([^<>]*)>")


@dataclasses.dataclass(frozen=True)
class Computation:
    """A forward pass. Paths are as in the parameters: "stage1_block1/conv1"; "" is the model."""

    jaxpr: ClosedJaxpr
    """Its inputs are the leaves of `variables`, then the network's inputs."""
    variables: Any
    """Shapes of the variables that the model initialises."""
    output: Any
    """Shape of what the model returns."""
    sown: dict[str, Any]
    """Shapes of what it sows into the requested collections."""
    initialized: tuple[str, ...]
    """Paths of the modules in the order in which their first calls begin in initialisation."""
    called: tuple[str, ...]
    """Paths of the modules in the order in which their first calls end.

    In evaluation, without those that run in training only.
    """


@dataclasses.dataclass(frozen=True)
class Step:
    """An equation, how often it runs, and the path of the module that it belongs to."""

    equation: JaxprEqn
    times: int
    path: str
    unbounded: bool = False
    """Whether inside a `while` with an unknown trip count; `times` is then per iteration."""


def computation(
    model: nn.Module | Network,
    inputs: tuple[Any, ...],
    *,
    train: bool = False,
    sow: Sequence[str] = (),
) -> Computation:
    """Trace initialisation and a forward pass; nothing is computed. Cached by shapes.

    inputs: shapes of the call's arguments; `sow`: collections that it may sow into.
    A mark in the name stack names the module: linen's own names are those of the caller, which
    differ from the parameters' for a shared layer or a method other than `__call__`. Outputs pass
    through an identity with the module's name. Raises InputError for inputs that the network
    cannot take.
    """
    return _computation(as_static(model), train, tuple(sow), *shapes_of(inputs))


@functools.lru_cache(maxsize=64)
def _computation(
    model: nn.Module | Network,
    train: bool,
    sow: tuple[str, ...],
    structure: Any,
    shapes: tuple[Any, ...],
) -> Computation:
    inputs = jax.tree.unflatten(structure, shapes)
    initialized: dict[str, None] = {}
    called: dict[str, None] = {}
    with _mark_modules(initialized, {}):
        variables = _shapes_of_variables(model, inputs)
    for collection in sow:  # not part of the state of the network
        variables.pop(collection, None)
    validate_inputs(model, variables, (inputs, None), no_loss, train)
    with _mark_modules({}, called), reference_lowering():
        forward = jax.make_jaxpr(
            lambda variables, inputs: apply_module(
                model, variables, (inputs, None), train, sow=sow
            ),
            return_shape=True,
        )
        jaxpr, (output, changed) = forward(variables, inputs)
    return Computation(jaxpr, variables, output, changed, tuple(initialized), tuple(called))


def shapes_of_variables(model: nn.Module | Network, inputs: tuple[Any, ...]) -> dict[str, Any]:
    """Shapes of the variables of the network, cached. Raises InputError for unsuitable inputs."""
    try:
        model = as_static(model)
    except InputError:  # a field cannot be hashed, such as an array: no cache
        return _shapes_of_variables(model, inputs)
    return dict(_cached_shapes(model, *shapes_of(inputs)))


@functools.lru_cache(maxsize=256)
def _cached_shapes(
    model: nn.Module | Network, structure: Any, shapes: tuple[Any, ...]
) -> dict[str, Any]:
    return _shapes_of_variables(model, jax.tree.unflatten(structure, shapes))


def _shapes_of_variables(model: nn.Module | Network, inputs: tuple[Any, ...]) -> dict[str, Any]:
    try:
        return {"params": {}, **jax.eval_shape(lambda inputs: initialise(model, inputs), inputs)}
    except Exception as error:  # anything that linen, JAX or the network raises about shapes
        raise InputError(
            f"input_shape is {typed_shapes(inputs)}, batch included; allowed: what "
            f"{name_of(model)} takes, which says: {reason(error).rstrip('.')}; for other dtypes "
            "and for several inputs give a jax.ShapeDtypeStruct each"
        ) from error


def steps(
    jaxpr: Jaxpr,
    times: int = 1,
    path: str = "",
    unbounded: bool = False,
    known: Known | None = None,
) -> Iterator[Step]:
    """Every equation in order, including those of inner jaxprs; `path` is that of the module.

    Of the branches of a conditional one is counted: one with uncountable work, if there is any;
    else that with most multiply-adds, and among equals the one that computes most numbers.
    known: variables of the jaxpr that are constants.
    """
    known = known or {}
    for equation in jaxpr.eqns:
        marks = _MARK.findall(str(equation.source_info.name_stack))
        step = Step(equation, times, marks[-1] if marks else path, unbounded)
        yield step
        for inner in inner_jaxprs(equation, known, _weight):
            runs = times * (1 if inner.times is None else inner.times)
            constants = known_inside(equation, inner.jaxpr, known)
            yield from steps(
                inner.jaxpr, runs, step.path, unbounded or inner.times is None, constants
            )


def is_missing(step: Step) -> bool:
    """Whether the equation contains products, or may, whose number is unknown."""
    name = step.equation.primitive.name
    if name in PRODUCTS:
        return step.unbounded and equation_macs(step.equation) > 0
    return name not in WITHOUT_PRODUCTS | CONTROL


def _weight(jaxpr: Jaxpr) -> tuple[bool, int, int]:
    traced = list(steps(jaxpr))
    numbers = sum(
        math.prod(getattr(output.aval, "shape", ()))
        for step in traced
        for output in step.equation.outvars
    )
    return (
        any(map(is_missing, traced)),
        sum(step.times * equation_macs(step.equation) for step in traced),
        numbers,
    )


def _mark_modules(begun: dict[str, None], ended: dict[str, None]) -> Any:
    """A context that marks equations and outputs with their modules.

    Records the paths of the modules whose methods begin and end, in order.
    """
    seen: list[Any] = []  # references, so that no new array gets the id of one of them

    def named(path: str, output: Any) -> Any:
        """Mark an output; one that several modules return belongs to the innermost."""
        if not isinstance(output, jax.Array) or any(output is each for each in seen):
            return output
        seen.append(checkpoint_name(output, OUTPUT + path))
        return seen[-1]

    def around(
        module: nn.Module, context: nn.module.InterceptorContext, call: Any, *arguments: Any
    ) -> Any:
        path = path_of(module)
        begun.setdefault(path)
        with jax.named_scope(f"<{path}>"):
            output = call()
        ended.setdefault(path)
        if context.method_name != "__call__":
            return output
        return jax.tree.map(functools.partial(named, path), output)

    return intercept_network(around)
