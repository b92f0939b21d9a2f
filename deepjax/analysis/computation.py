"""A network as a traced computation in which every equation tells the module that it is part of; nothing is computed."""

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from deepjax.analysis.forward import demanded_switches, initialise
from deepjax.written import as_written

_MARK = re.compile(r"<([^<>]*)>")


@dataclasses.dataclass(frozen=True)
class Computation:
    """The forward pass of one image in evaluation. Paths are the parameters': "stage1_block1/conv1", "" for the model itself."""

    jaxpr: ClosedJaxpr
    """Its inputs are the leaves of `variables`, then the images."""
    variables: Any
    """Shapes of all that the model initialises."""
    output: Any
    """Shape of what the model returns."""
    sown: dict[str, Any]
    """Shapes of what it sows into the collections that were asked for."""
    initialized: tuple[str, ...]
    """Paths of the modules in the order in which initialisation calls them."""
    called: tuple[str, ...]
    """Paths of the modules in the order in which evaluation calls them; heads that only train are absent."""


@dataclasses.dataclass(frozen=True)
class Step:
    """An equation, how often it runs (a scanned body: once a step), and the path of the module that it is part of."""

    equation: JaxprEqn
    times: int
    path: str


def computation(model: nn.Module, input_shape: tuple[int, ...], collections: Sequence[str] = ()) -> Computation:
    """Trace initialisation and evaluation. input_shape: (height, width, channels); `collections`: those that it may sow into.

    A mark in the name stack, put there by linen's method interception, names the module: linen's own names are the callers', which
    differ from the parameters' for a shared layer or a method other than `__call__`.
    """
    initialized: dict[str, None] = {}
    called: dict[str, None] = {}
    images = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    told: dict[str, Any] = demanded_switches(model)
    with nn.intercept_methods(_marker(initialized)):
        variables = dict(jax.eval_shape(lambda images: initialise(model, images), images))
    for collection in collections:  # what initialisation has sown is none of the network's state
        variables.pop(collection, None)
    with nn.intercept_methods(_marker(called)), as_written():
        evaluate = jax.make_jaxpr(
            lambda variables, images: model.apply(variables, images, mutable=list(collections), **told), return_shape=True
        )
        jaxpr, (output, sown) = evaluate(variables, images)
    return Computation(jaxpr, variables, output, sown, tuple(initialized), tuple(called))


def steps(jaxpr: Jaxpr, times: int = 1, path: str = "") -> Iterator[Step]:
    """Every equation in order, those of inner computations included; `path` is that of the module around them.

    Of a conditional's branches only the one that computes most numbers counts.
    """
    for equation in jaxpr.eqns:
        marks = _MARK.findall(str(equation.source_info.name_stack))
        step = Step(equation, times, marks[-1] if marks else path)
        yield step
        length = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for value in equation.params.values():
            inner = _jaxpr(value)
            if inner is not None:
                yield from steps(inner, times * length, step.path)


def _jaxpr(value: Any) -> Jaxpr | None:
    """The inner computation that a parameter of an equation is, or the largest of several."""
    if isinstance(value, tuple) and value and all(isinstance(each, ClosedJaxpr) for each in value):
        return max((each.jaxpr for each in value), key=_computed)
    inner = value.jaxpr if isinstance(value, ClosedJaxpr) else value
    return inner if isinstance(inner, Jaxpr) else None


def _computed(jaxpr: Jaxpr) -> int:
    outputs = [output for step in steps(jaxpr) for output in step.equation.outvars]
    return sum(math.prod(getattr(output.aval, "shape", ())) for output in outputs)


def _marker(called: dict[str, None]) -> Any:
    """An interceptor that marks equations and notes which modules are called, in order."""

    def mark(function: Any, arguments: Any, keywords: Any, context: nn.module.InterceptorContext) -> Any:
        path = "/".join(context.module.path)
        called.setdefault(path)
        with jax.named_scope(f"<{path}>"):
            return function(*arguments, **keywords)

    return mark
