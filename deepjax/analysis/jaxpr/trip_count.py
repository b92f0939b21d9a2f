"""The trip count of a `while`, where it depends on constants only."""

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np

from deepjax.backend.jax_internals import Jaxpr, JaxprEqn, Literal, Var

Known = Mapping[Var, int]
_COMPARISONS = {
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "ne": operator.ne,
}
_MIRRORED = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le", "ne": "ne"}


def trip_count(equation: JaxprEqn, known: Known) -> int | None:
    """Iterations of a `while` that counts integers in equal steps from constant to constant.

    None for any other. known: constants among the variables outside the equation.
    """
    params = equation.params
    condition, body = params["cond_jaxpr"].jaxpr, params["body_jaxpr"].jaxpr
    carried = equation.invars[params["cond_nconsts"] + params["body_nconsts"] :]
    start = [value_of(variable, known) for variable in carried]
    outside = equation.invars[: params["cond_nconsts"]]
    constants = dict(
        zip(condition.invars, [value_of(each, known) for each in outside], strict=False)
    )
    first_carried = condition.invars[params["cond_nconsts"] :]
    inside = body.invars[params["body_nconsts"] :]
    for i, (variable, before, after) in enumerate(
        zip(first_carried, inside, body.outvars, strict=True)
    ):
        if before is after:  # a bound that is carried unchanged
            constants[variable] = start[i]
    found = _comparison(
        condition, {variable: value for variable, value in constants.items() if value is not None}
    )
    if found is None or found[0] not in first_carried:
        return None
    counter, name, bound = found
    place = first_carried.index(counter)
    first, step = start[place], _step(body, inside[place], body.outvars[place])
    aval: Any = counter.aval
    return None if first is None or step is None else _turns(first, step, name, bound, aval.dtype)


def value_of(variable: Any, known: Known) -> int | None:
    """The integer value of a variable; None: unknown."""
    if isinstance(variable, Literal):
        scalar = np.ndim(variable.val) == 0 and np.issubdtype(
            np.result_type(variable.val), np.integer
        )
        return int(variable.val) if scalar else None
    return known.get(variable)


def _comparison(condition: Jaxpr, known: Known) -> tuple[Var, str, int] | None:
    """(counter, comparison, bound) if the condition compares a variable with a constant."""
    equation = _source(condition, condition.outvars[0])
    if equation is None or equation.primitive.name not in _COMPARISONS:
        return None
    name, (left, right) = equation.primitive.name, equation.invars
    if (bound := value_of(right, known)) is not None and isinstance(left, Var):
        return left, name, bound
    if (bound := value_of(left, known)) is not None and isinstance(right, Var):
        return right, _MIRRORED[name], bound
    return None


def _step(body: Jaxpr, before: Var, after: Any) -> int | None:
    """What an iteration adds to a carried variable."""
    equation = _source(body, after)
    if equation is None or equation.primitive.name not in ("add", "sub"):
        return None
    left, right = equation.invars
    adds = equation.primitive.name == "add"
    if left is before and (step := value_of(right, {})) is not None:
        return step if adds else -step
    return value_of(left, {}) if adds and right is before else None


def _source(jaxpr: Jaxpr, variable: Any) -> JaxprEqn | None:
    return next((equation for equation in jaxpr.eqns if variable in equation.outvars), None)


def _turns(first: int, step: int, name: str, bound: int, dtype: Any) -> int | None:
    holds = _COMPARISONS[name]
    if not holds(first, bound):
        return 0
    towards = step > 0 if name in ("lt", "le") else step < 0
    if name == "ne":
        towards = step != 0 and (bound - first) % step == 0 and (bound - first) // step > 0
    if not towards:
        return None
    slack = 1 if name in ("le", "ge") else 0
    turns = -(-(abs(bound - first) + slack) // abs(step))
    limits = np.iinfo(dtype)
    # Otherwise the counter wraps around.
    return turns if limits.min <= first + turns * step <= limits.max else None
