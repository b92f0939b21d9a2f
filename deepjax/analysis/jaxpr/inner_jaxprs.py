"""The inner jaxprs of an equation, and how often each runs."""

import dataclasses
import math
from collections.abc import Callable

from deepjax.analysis.jaxpr.primitives import CALLS
from deepjax.analysis.jaxpr.trip_count import Known, trip_count, value_of
from deepjax.backend.jax_internals import ClosedJaxpr, Jaxpr, JaxprEqn


@dataclasses.dataclass(frozen=True)
class Inner:
    """A jaxpr inside an equation."""

    jaxpr: Jaxpr
    times: int | None
    """Number of runs; None: not known before execution."""


Weigh = Callable[[Jaxpr], tuple[int, ...]]
"""A sort key for the branches of a conditional: the largest is counted."""


CONTROL = CALLS | {"cond", "custom_linear_solve", "scan", "shard_map", "while"}
"""Primitives whose inner jaxprs are handled here."""


def inner_jaxprs(equation: JaxprEqn, known: Known, weigh: Weigh) -> list[Inner]:
    """Inner jaxprs in the order in which they run; of a conditional the branch that weighs most.

    That of `shard_map` runs once per device. Empty for a primitive outside `CONTROL`.
    """
    params, name = equation.params, equation.primitive.name
    if name == "cond":
        return [Inner(max((branch.jaxpr for branch in params["branches"]), key=weigh), 1)]
    if name == "while":
        turns = trip_count(equation, known)
        condition = Inner(params["cond_jaxpr"].jaxpr, None if turns is None else turns + 1)
        return [condition, Inner(params["body_jaxpr"].jaxpr, turns)]
    if name == "custom_linear_solve":
        return [Inner(params["jaxprs"].solve.jaxpr, 1)]
    if name not in CONTROL:
        return []
    inner = next(value for value in params.values() if isinstance(value, Jaxpr | ClosedJaxpr))
    return [Inner(inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner, _times(equation))]


def _times(equation: JaxprEqn) -> int:
    params = equation.params
    if equation.primitive.name == "shard_map":
        return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    return params["length"] if equation.primitive.name == "scan" else 1


def known_inside(equation: JaxprEqn, inner: Jaxpr, known: Known) -> Known:
    """Constants among the inputs of the inner jaxpr of a call."""
    if equation.primitive.name not in CALLS or len(inner.invars) != len(equation.invars):
        return {}
    values = {
        inside: value_of(outside, known)
        for inside, outside in zip(inner.invars, equation.invars, strict=True)
    }
    return {variable: value for variable, value in values.items() if value is not None}
