"""Layouts of convolutions inside loops, canonicalised for XLA:CPU.

XLA:CPU has fast code for NHWC inputs and HWIO kernels, and transposes convolutions to this layout,
except inside loops (jax issue 12868). Convolutions of a gradient have other layouts: a kernel's
gradient alone takes 35 times as long, and steps with scanned blocks or gradient accumulation 13 to
21 times.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from deepjax.backend.jax_internals import ClosedJaxpr, Jaxpr, JaxprEqn, jaxpr_as_fun

LOOPS = ("scan", "while")
CONVOLUTION = "conv_general_dilated"
CANONICAL = ("NHWC", "HWIO", "NHWC")


def canonicalize_conv_layouts(fun: Callable[..., Any]) -> Callable[..., Any]:
    """The same function up to rounding, with fast convolutions in loops on a CPU; else `fun`.

    For a function that computes gradients, not one that is differentiated: the convolutions of the
    gradient appear only then. Positional arguments are trees of arrays; keyword arguments are
    static. For use under jit, because each call traces anew.
    """

    @functools.wraps(fun)
    def run(*args: Any, **kwargs: Any) -> Any:
        if jax.default_backend() != "cpu":
            return fun(*args, **kwargs)
        traced, shapes = jax.make_jaxpr(functools.partial(fun, **kwargs), return_shape=True)(*args)
        results = jaxpr_as_fun(_within(traced, False))(*jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return run


def _within(value: Any, in_loop: bool) -> Any:
    """A parameter of an equation with canonical convolutions; the same object if unchanged."""
    if isinstance(value, Jaxpr):  # first: in JAX 0.12 a ClosedJaxpr is one
        equations = [_equation(each, in_loop) for each in value.eqns]
        return value if _same(equations, value.eqns) else value.replace(eqns=equations)
    if isinstance(value, ClosedJaxpr):
        inner = _within(value.jaxpr, in_loop)
        return value if inner is value.jaxpr else value.replace(jaxpr=inner)
    if type(value) is tuple:
        parts = tuple(_within(each, in_loop) for each in value)
        return value if _same(parts, value) else parts
    return value


def _equation(equation: JaxprEqn, in_loop: bool) -> JaxprEqn:
    name = equation.primitive.name
    if (
        name == CONVOLUTION
        and in_loop
        and len(equation.params["dimension_numbers"].out_spec) == len(CANONICAL[0])
    ):
        ordered = jax.jit(functools.partial(_canonical_convolution, **equation.params))
        (call,) = jax.make_jaxpr(ordered)(*(variable.aval for variable in equation.invars)).eqns
        return call.replace(invars=equation.invars, outvars=equation.outvars)
    params = {
        key: _within(value, in_loop or name in LOOPS) for key, value in equation.params.items()
    }
    return (
        equation
        if _same(params.values(), equation.params.values())
        else equation.replace(params=params)
    )


def _same(new: Iterable[Any], old: Iterable[Any]) -> bool:
    return all(a is b for a, b in zip(new, old, strict=True))


def _canonical_convolution(
    x: Array, kernel: Array, *, dimension_numbers: lax.ConvDimensionNumbers, **params: Any
) -> Array:
    """lax.conv_general_dilated in any layout, by a canonical one between transpositions."""
    batch, feature, *space = dimension_numbers.lhs_spec
    out, into, *window = dimension_numbers.rhs_spec
    result_batch, result_feature, *result_space = dimension_numbers.out_spec
    x, kernel = (
        jnp.transpose(x, (batch, *space, feature)),
        jnp.transpose(kernel, (*window, into, out)),
    )
    y = lax.conv_general_dilated(x, kernel, dimension_numbers=CANONICAL, **params)
    axes = (result_batch, *result_space, result_feature)
    return jnp.transpose(y, [axes.index(axis) for axis in range(y.ndim)])
