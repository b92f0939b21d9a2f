"""Cost of a network from its traced computation: nothing is run, nothing is looked up."""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn


def count_params(model: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Number of trainable parameters, by abstract evaluation. input_shape: (height, width, channels)."""
    variables = _abstract_variables(model, input_shape)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))


def count_macs(model: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Multiply-adds of convolutions and matrix products for one image in evaluation, from the traced computation.

    Padding counts as computed, as the papers and torchvision count it. input_shape: (height, width, channels).
    """
    images = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    jaxpr = jax.make_jaxpr(model.apply)(_abstract_variables(model, input_shape), images)
    return sum(_equation_macs(equation) for equation in _equations(jaxpr.jaxpr))


def _abstract_variables(model: nn.Module, input_shape: tuple[int, ...]) -> Any:
    images = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)


def _equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """Every equation, those of inner computations included; a scanned body as often as it runs."""
    for equation in jaxpr.eqns:
        yield equation
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for value in equation.params.values():
            inner = value.jaxpr if isinstance(value, ClosedJaxpr) else value
            if isinstance(inner, Jaxpr):
                for _ in range(times):
                    yield from _equations(inner)


def _equation_macs(equation: JaxprEqn) -> int:
    if equation.primitive.name == "conv_general_dilated":
        kernel = _shape(equation.invars[1])
        out_features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
        return math.prod(_shape(equation.outvars[0])) * math.prod(kernel) // out_features
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return math.prod(_shape(equation.outvars[0])) * math.prod(_shape(equation.invars[0])[axis] for axis in contracted)
    return 0


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape
