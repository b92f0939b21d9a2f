"""Multiply-adds of an equation that is a convolution or a matrix product."""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from deepjax.backend.jax_internals import JaxprEqn


def equation_macs(equation: JaxprEqn) -> int:
    """Multiply-adds of the equation; 0 unless it is one of `PRODUCTS`. A complex one counts as 4.

    Convolutions: products with padding count, as in the papers and torchvision. Products with the
    zeros that lhs_dilation inserts do not, and padding is then in elements of that spacing. This
    leaves the products of a transposed convolution: height * width * kernel * channels where it
    multiplies the size by its stride, as in fvcore.
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
    """Along one axis, the number of (unit, tap) pairs that read an element rather than a zero.

    spacing: of the elements (lhs_dilation); before: padding before the first element.
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
    """Assumes that every row belongs to a group, which is known at run time only."""
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
"""Names of the counted primitives."""
