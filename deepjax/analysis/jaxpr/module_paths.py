"""A network as a jaxpr in which every equation knows the module that it belongs to."""

import contextlib
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

from deepjax.analysis.jaxpr.inner_jaxprs import CONTROL, inner_jaxprs, known_inside
from deepjax.analysis.jaxpr.primitives import WITHOUT_PRODUCTS
from deepjax.analysis.jaxpr.products import PRODUCTS, equation_macs
from deepjax.analysis.jaxpr.trip_count import Known
from deepjax.analysis.network.adapter import Adapter, Inputs
from deepjax.analysis.network.calls import intercept_network, map_arrays
from deepjax.analysis.network.input_shapes import misfit_error
from deepjax.analysis.network.layer import Layer, Method
from deepjax.analysis.network.module import (
    Model,
    Network,
    apply_module,
    initialise,
    network_of,
    no_loss,
    shapes_of,
    validate_inputs,
)
from deepjax.backend.jax_internals import ClosedJaxpr, Jaxpr, JaxprEqn
from deepjax.backend.lowering import reference_lowering

OUTPUT = "output of "  # before the path, in the name of the identity that marks a module's output
_MARK = re.compile(r"<([^<>]*)>")
OwnShapes = tuple[Any, tuple[Any, ...]] | None
"""Structure and shapes of the leaves of the variables."""


@dataclasses.dataclass(frozen=True)
class Computation:
    """A forward pass. Paths are as in the parameters: "stage1_block1/conv1"; "" is the model."""

    jaxpr: ClosedJaxpr
    """Its inputs are the leaves of `variables`, then the network's inputs."""
    variables: Any
    """Shapes of the variables that the model initialises, or has."""
    output: Any
    """Shape of what the model returns."""
    sown: dict[str, Any]
    """Shapes of what it sows into the requested collections."""
    initialized: tuple[str, ...]
    """Paths of the modules in the order in which their first calls begin in initialisation; of a
    network of NNX, which has its variables, in the forward pass."""
    called: tuple[str, ...]
    """Paths of the modules in the order in which their first calls end, in this mode."""


@dataclasses.dataclass(frozen=True)
class Step:
    """An equation, how often it runs, and the path of the module that it belongs to."""

    equation: JaxprEqn
    times: int
    path: str
    unbounded: bool = False
    """Whether inside a `while` with an unknown trip count; `times` is then per iteration."""


def computation(
    model: Model, inputs: Inputs, *, train: bool = False, sow: Sequence[str] = ()
) -> Computation:
    """Trace initialisation and a forward pass; nothing is computed. Cached by shapes.

    inputs: shapes of the call's arguments; `sow`: collections that it may sow into. A function is
    one module, "".
    A mark in the name stack names the module: linen's own names are those of the caller, which
    differ from the parameters' for a shared layer or a method other than `__call__`. Outputs pass
    through an identity with the module's name. Raises InputError for inputs that the network
    cannot take.
    """
    network = network_of(model)
    own = own_shapes(network, inputs)
    return _computation(network, own, train, tuple(sow), *shapes_of(inputs))


@functools.lru_cache(maxsize=64)
def _computation(
    model: Network,
    own: OwnShapes,
    train: bool,
    sow: tuple[str, ...],
    structure: Any,
    shapes: tuple[Any, ...],
) -> Computation:
    inputs = jax.tree.unflatten(structure, shapes)
    initialized: dict[str, None] = {}
    begun: dict[str, None] = {}
    called: dict[str, None] = {}
    with _mark_modules(initialized, {}):
        variables = _shapes_of_variables(model, own, inputs)
    for collection in sow:  # not part of the state of the network
        variables.pop(collection, None)
    validate_inputs(model, variables, (inputs, None), no_loss, train)

    def forward(variables: Any, inputs: Inputs) -> tuple[Any, Any]:
        output, changed = apply_module(model, variables, (inputs, None), train, sow=sow)
        return (output if _has_layers(model) else name_output("", output)), changed

    with _mark_modules(begun, called) as name_output, reference_lowering():
        jaxpr, (output, changed) = jax.make_jaxpr(forward, return_shape=True)(variables, inputs)
    return Computation(
        jaxpr, variables, output, changed, tuple(initialized or begun), tuple(called)
    )


def _has_layers(model: Network) -> bool:
    return not isinstance(model.module, Adapter) or model.module.has_layers


def shapes_of_variables(model: Model, inputs: Inputs) -> dict[str, Any]:
    """Shapes of the variables of the network, cached. Raises InputError for unsuitable inputs."""
    network = network_of(model)
    return dict(_cached_shapes(network, own_shapes(network, inputs), *shapes_of(inputs)))


def own_shapes(model: Network, inputs: Inputs) -> OwnShapes:
    """Shapes of the variables of a network that has them, as a cache key; None for linen.

    Networks of NNX modules and of functions are equal whatever the shapes of their variables.
    """
    if isinstance(model.module, Adapter):
        return shapes_of({"params": {}} | model.module.variables_for(inputs))
    return None


@functools.lru_cache(maxsize=256)
def _cached_shapes(
    model: Network, own: OwnShapes, structure: Any, shapes: tuple[Any, ...]
) -> dict[str, Any]:
    return _shapes_of_variables(model, own, jax.tree.unflatten(structure, shapes))


def _shapes_of_variables(model: Network, own: OwnShapes, inputs: Inputs) -> dict[str, Any]:
    if own is not None:
        return jax.tree.unflatten(*own)
    try:
        return {"params": {}, **jax.eval_shape(lambda inputs: initialise(model, inputs), inputs)}
    except Exception as error:  # anything that linen, JAX or the network raises about shapes
        raise misfit_error(model, inputs, error) from error


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


@contextlib.contextmanager
def _mark_modules(
    begun: dict[str, None], ended: dict[str, None]
) -> Iterator[Callable[[str, Any], Any]]:
    """A context that marks equations and outputs with their modules.

    Records the paths of the modules whose methods begin and end, in order. Returns what marks
    outputs with a path.
    """
    seen: list[Any] = []  # references, so that no new array gets the id of one of them

    def name_output(path: str, output: Any) -> Any:
        """Mark the arrays; one that several modules return belongs to the innermost."""

        def named(value: jax.Array, _: str) -> jax.Array:
            if any(value is each for each in seen):
                return value
            seen.append(checkpoint_name(value, OUTPUT + path))
            return seen[-1]

        return map_arrays(named, output, "")

    def around(layer: Layer, method: Method, call: Any, *arguments: Any) -> Any:
        path = layer.label
        begun.setdefault(path)
        with jax.named_scope(f"<{path}>"):
            output = call()
        ended.setdefault(path)
        return name_output(path, output) if method.name == "__call__" else output

    with intercept_network(around):
        yield name_output
