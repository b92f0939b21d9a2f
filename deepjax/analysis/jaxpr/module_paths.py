"""A network as a traced computation in which every equation tells the module that it is part of; nothing is computed."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from deepjax.analysis.core.input_shapes import typed_shapes
from deepjax.analysis.core.module import (
    Network,
    hashable,
    initialise,
    name_of,
    no_loss,
    reason,
    run,
    shapes_of,
    validate_inputs,
)
from deepjax.analysis.core.nn_jit import RUN
from deepjax.analysis.jaxpr.inner_jaxprs import CONTROL, inner_jaxprs, known_inside
from deepjax.analysis.jaxpr.primitives import WITHOUT_PRODUCTS
from deepjax.analysis.jaxpr.products import PRODUCTS, equation_macs
from deepjax.analysis.jaxpr.trip_count import Known
from deepjax.backend.lowering import reference_lowering
from deepjax.errors import InputError

OUTPUT = "output of "  # before the path, in the name of the identity that marks a module's output
_MARK = re.compile(r"<([^<>]*)>")


@dataclasses.dataclass(frozen=True)
class Computation:
    """A forward pass. Paths are the parameters': "stage1_block1/conv1", "" for the model itself."""

    jaxpr: ClosedJaxpr
    """Its inputs are the leaves of `variables`, then the network's own inputs."""
    variables: Any
    """Shapes of all that the model initialises."""
    output: Any
    """Shape of what the model returns."""
    sown: dict[str, Any]
    """Shapes of what it sows into the collections that were asked for."""
    initialized: tuple[str, ...]
    """Paths of the modules in the order in which their first call begins in initialisation."""
    called: tuple[str, ...]
    """Paths of the modules in the order in which their first call ends; in evaluation, heads that only train are absent."""


@dataclasses.dataclass(frozen=True)
class Step:
    """An equation, how often it runs (a scanned body: once a step), and the path of the module that it is part of."""

    equation: JaxprEqn
    times: int
    path: str
    unbounded: bool = False
    """Whether it is in a `while` whose number of turns depends on its data; `times` is then that of one turn."""


def computation(
    model: nn.Module | Network,
    inputs: tuple[Any, ...],
    *,
    train: bool = False,
    sow: Sequence[str] = (),
) -> Computation:
    """Trace initialisation and a forward pass. inputs: shapes of the call's arguments; `sow`: collections that it may sow into.

    A mark in the name stack, put there by linen's method interception, names the module: linen's own names are the callers', which
    differ from the parameters' for a shared layer or a method other than `__call__`. Outputs pass an identity with the module's
    name. The answer is kept for the next call with such shapes. Raises InputError for inputs that the network cannot take.
    """
    return _computation(hashable(model), train, tuple(sow), *shapes_of(inputs))


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
    with nn.intercept_methods(_marker(initialized, {})):
        variables = _shapes_of_variables(model, inputs)
    for collection in sow:  # what initialisation has sown is none of the network's state
        variables.pop(collection, None)
    validate_inputs(model, variables, (inputs, None), no_loss, train)
    with nn.intercept_methods(_marker({}, called)), reference_lowering():
        forward = jax.make_jaxpr(
            lambda variables, inputs: run(model, variables, (inputs, None), train, sow=sow),
            return_shape=True,
        )
        jaxpr, (output, changed) = forward(variables, inputs)
    return Computation(jaxpr, variables, output, changed, tuple(initialized), tuple(called))


def shapes_of_variables(model: nn.Module | Network, inputs: tuple[Any, ...]) -> dict[str, Any]:
    """Shapes of a fresh network's variables, kept for the next call. Raises InputError for inputs that it cannot take."""
    try:
        model = hashable(model)
    except InputError:  # a field, such as an array, that cannot be a key: traced at every call
        return _shapes_of_variables(model, inputs)
    return dict(_kept_shapes(model, *shapes_of(inputs)))


@functools.lru_cache(maxsize=256)
def _kept_shapes(
    model: nn.Module | Network, structure: Any, shapes: tuple[Any, ...]
) -> dict[str, Any]:
    return _shapes_of_variables(model, jax.tree.unflatten(structure, shapes))


def _shapes_of_variables(model: nn.Module | Network, inputs: tuple[Any, ...]) -> dict[str, Any]:
    try:
        return {"params": {}, **jax.eval_shape(lambda inputs: initialise(model, inputs), inputs)}
    except (
        Exception
    ) as error:  # whatever linen, JAX or the network itself raises of shapes and dtypes
        raise InputError(
            f"input_shape is {typed_shapes(inputs)}, batch included; allowed: what {name_of(model)} takes, which says: "
            f"{reason(error).rstrip('.')}; for other dtypes and for several inputs give a jax.ShapeDtypeStruct each"
        ) from error


def steps(
    jaxpr: Jaxpr,
    times: int = 1,
    path: str = "",
    unbounded: bool = False,
    known: Known | None = None,
) -> Iterator[Step]:
    """Every equation in order, those of inner computations included; `path` is that of the module around them.

    Of a conditional's branches only one counts: one with work that cannot be counted, so that it shows; else that with most
    multiply-adds, and among equals the one that computes most numbers.
    known: variables of the computation that are constants.
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
    """Whether the equation multiplies, or may, and it is not known how much."""
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


def _marker(begun: dict[str, None], ended: dict[str, None]) -> Any:
    """An interceptor that marks equations and outputs, and notes which modules' methods begin and end, in order."""
    seen: list[Any] = []  # kept alive, so that no other array gets the identity of one of them

    def named(path: str, output: Any) -> Any:
        """An array that several modules hand on belongs to the innermost."""
        if not isinstance(output, jax.Array) or any(output is each for each in seen):
            return output
        seen.append(checkpoint_name(output, OUTPUT + path))
        return seen[-1]

    def mark(
        function: Any, arguments: Any, keywords: Any, context: nn.module.InterceptorContext
    ) -> Any:
        scope = context.module.scope
        if scope is None or not scope.has_flag(
            RUN
        ):  # one that the network applies with variables of its own is no layer
            return function(*arguments, **keywords)
        path = "/".join(context.module.path)
        begun.setdefault(path)
        with jax.named_scope(f"<{path}>"):
            output = function(*arguments, **keywords)
        ended.setdefault(path)
        return (
            jax.tree.map(functools.partial(named, path), output)
            if context.method_name == "__call__"
            else output
        )

    return mark
