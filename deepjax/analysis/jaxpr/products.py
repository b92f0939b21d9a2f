"""Multiply-adds of one equation, if it is a convolution or a matrix product."""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn


def equation_macs(equation: JaxprEqn) -> int:
    """Multiply-adds of the equation; 0 where it is none of `PRODUCTS`. One of complex numbers is 4 of real ones.

    Convolutions: padding counts as computed, as the papers and torchvision count it. Zeros that lhs_dilation inserts between
    the input's elements do not, and padding is then elements of the same spacing: what remains is what a transposed convolution
    computes, height * width * kernel * channels in all where it multiplies the size by its stride, as fvcore counts it.
    """
    count = _COUNTS.get(equation.primitive.name)
    if count is None:
        return 0
    is_complex = jnp.issubdtype(equation.outvars[0].aval.dtype, jnp.complexfloating)  # type: ignore[attr-defined]
    return count(equation) * (4 if is_complex else 1)


def _convolution(equation: JaxprEqn) -> int:
    params = equation.params
    layout = params["dimension_numbers"]
    kernel, output = _shape(equation.invars[1]), _shape(equation.outvars[0])
    pairs = [
        _pairs(
            output[layout.out_spec[i + 2]],
            kernel[layout.rhs_spec[i + 2]],
            params["window_strides"][i],
            params["rhs_dilation"][i],
            params["lhs_dilation"][i],
            params["padding"][i][0],
        )
        for i in range(len(output) - 2)
    ]
    batch, out_features = (output[axis] for axis in layout.out_spec[:2])
    in_features = kernel[layout.rhs_spec[1]]  # of one group
    return batch * out_features * in_features * math.prod(pairs)


def _pairs(outputs: int, taps: int, stride: int, dilation: int, spacing: int, before: int) -> int:
    """Along one axis, how many pairs of a unit and a tap of its window do not fall between the input's elements.

    spacing: of the elements, lhs_dilation; before: padding before the first.
    """
    if spacing == 1:
        return outputs * taps
    units = np.bincount(np.arange(outputs) * stride % spacing, minlength=spacing)
    return int(units[(before - np.arange(taps) * dilation) % spacing].sum())


def _dot(equation: JaxprEqn) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = _shape(equation.invars[0])
    return math.prod(_shape(equation.outvars[0])) * math.prod(left[axis] for axis in contracted)


def _ragged_dot(equation: JaxprEqn) -> int:
    """Every row belongs to one group: that some may belong to none is not known before it runs."""
    layout = equation.params["ragged_dot_dimension_numbers"]
    (_, contracted), (_, batch) = layout.dot_dimension_numbers
    taken = {*contracted, *batch, *layout.rhs_group_dimensions}
    left, right = (_shape(each) for each in equation.invars[:2])
    return math.prod(left) * math.prod(size for axis, size in enumerate(right) if axis not in taken)


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


_COUNTS: dict[str, Callable[[JaxprEqn], int]] = {
    "conv_general_dilated": _convolution,
    "dot_general": _dot,
    "ragged_dot_general": _ragged_dot,
}
PRODUCTS = frozenset(_COUNTS)
"""Names of the primitives that are counted."""
