"""Theoretical receptive fields of any computation on images, with branches, from its jaxpr.

Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional Neural Networks", Distill 2019,
section "Arbitrary computation graphs", with intervals of pixels per unit in place of their closed
forms, so that regional means are exact too.

The rules by primitive (`_RULES`): elementwise operations and residual sums take the union of their
operands; convolutions, pooling and slices move windows of intervals; transposes, reshapes and
broadcasts move intervals to other axes; reductions and dot products merge the units of an axis;
calls, branches and loops are evaluated. The outputs of any other primitive see the full image.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deepjax.analysis.jaxpr.primitives import CALLS, ELEMENTWISE, REDUCTIONS, WINDOWS
from deepjax.analysis.receptive_field.intervals import (
    Span,
    cut,
    full_image,
    join,
    merge,
    move,
    pad,
    pixels,
    union,
    window,
)
from deepjax.backend.jax_internals import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var
from deepjax.backend.lowering import reference_lowering
from deepjax.errors import require

Reach = tuple[Span, ...] | None
"""Fields of the units of an array along the image's rows and columns; None: no pixel."""
Rule = Callable[[JaxprEqn, list[Reach]], list[Reach]]


@dataclasses.dataclass(frozen=True)
class ReceptiveField:
    """Unit (i, j) sees rows i * stride - padding to i * stride - padding + size - 1; so columns.

    In pixels as (rows, columns), also beyond the image's edges. All are None where every unit sees,
    or may see, the full image. Stride and padding alone are None where the stride varies; the size
    is then the maximum. Size (0, 0): no pixel is seen.
    """

    size: tuple[int, int] | None
    stride: tuple[int, int] | None
    padding: tuple[int, int] | None


def receptive_fields(
    function: Callable[..., Any], input_shape: tuple[int, ...], *others: Any
) -> Any:
    """The `ReceptiveField` of each array that a function of images returns, as a tree.

    function: images (1, height, width, channels), *others -> tree of arrays. `others`, such as the
    variables, may be shapes. input_shape: (height, width, channels), large enough for several units
    per map. By abstract evaluation. Raises InputError for another shape.

    >>> receptive_fields(lambda x: x[:, ::2, ::2] + x[:, 1::2, 1::2], (8, 8, 3))
    ReceptiveField(size=(2, 2), stride=(2, 2), padding=(0, 0))
    """
    require(len(input_shape) == 3, "input_shape", input_shape, "(height, width, channels)")
    images = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    with reference_lowering():
        jaxpr, output = jax.make_jaxpr(function, return_shape=True)(images, *others)
    return jax.tree.unflatten(jax.tree.structure(output), fields_of(jaxpr, 0))


def fields_of(jaxpr: ClosedJaxpr, images: int) -> list[ReceptiveField]:
    """The receptive field of each output of a jaxpr. images: index of the input that holds them."""
    inputs: list[Reach] = [None] * len(jaxpr.jaxpr.invars)
    _, height, width, _ = jaxpr.in_avals[images].shape
    inputs[images] = (pixels(1, height), pixels(2, width))
    return [_field(reach) for reach in _evaluate(jaxpr.jaxpr, inputs)]


def _field(reach: Reach) -> ReceptiveField:
    if reach is None:
        return ReceptiveField((0, 0), None, None)
    sizes = [span.extent if _sees_all(span) else span.high - span.low + 1 for span in reach]
    if all(_sees_all(span) for span in reach):
        return ReceptiveField(None, None, None)
    size = _pair([np.max(each) for each in sizes])
    strides = [span.stride for span in reach if span.stride is not None]
    if len(strides) < len(reach):
        return ReceptiveField(size, None, None)
    return ReceptiveField(size, _pair(strides), _pair([-span.low[0] for span in reach]))


def _sees_all(span: Span) -> bool:
    """Units with a regular stride keep a theoretical span larger than the image."""
    covers = span.low.max() <= 0 and span.high.min() >= span.extent - 1
    return bool(np.isinf(span.low).any() or (span.stride is None and covers))


def _pair(values: Sequence[Any]) -> tuple[int, int]:
    rows, columns = values
    return int(rows), int(columns)


def _evaluate(jaxpr: Jaxpr, inputs: Sequence[Reach]) -> list[Reach]:
    """Fields of the outputs of a jaxpr, given those of its inputs."""
    reaches: dict[Var, Reach] = dict(zip(jaxpr.invars, inputs, strict=True))

    def read(variable: Any) -> Reach:
        return None if isinstance(variable, Literal) else reaches.get(variable)

    for equation in jaxpr.eqns:
        arguments = [read(variable) for variable in equation.invars]
        if any(arguments):
            rule = _RULES.get(equation.primitive.name, _unknown)
            reaches |= zip(equation.outvars, rule(equation, arguments), strict=True)
    return [read(variable) for variable in jaxpr.outvars]


def _each(reach: Reach, change: Callable[[Span, int], Span]) -> Reach:
    """Change the spans that vary along an axis of the array. change: (span, its axis) -> span."""
    return reach and tuple(span if span.axis is None else change(span, span.axis) for span in reach)


def _union(reaches: Sequence[Reach]) -> Reach:
    """Fields of units computed from the same unit of several arrays."""
    seen = [reach for reach in reaches if reach is not None]
    return tuple(union(spans) for spans in zip(*seen, strict=True)) if seen else None


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _unknown(equation: JaxprEqn, arguments: list[Reach]) -> list[Reach]:
    """An unknown primitive: its outputs may see the full image."""
    seen = next(reach for reach in arguments if reach)
    return [tuple(full_image(span.extent) for span in seen)] * len(equation.outvars)


def _elementwise(equation: JaxprEqn, arguments: list[Reach]) -> list[Reach]:
    return [_union(arguments)] * len(equation.outvars)


def _convolution(equation: JaxprEqn, arguments: list[Reach]) -> list[Reach]:
    params, (maps, kernel) = equation.params, arguments
    if kernel or set(params["lhs_dilation"]) != {1} or params["batch_group_count"] != 1:
        return _unknown(equation, arguments)
    layout = params["dimension_numbers"]
    sizes = [_shape(equation.invars[1])[axis] for axis in layout.rhs_spec[2:]]

    def convolve(span: Span, axis: int) -> Span:
        if axis == layout.lhs_spec[1]:
            return merge(span)
        if axis == layout.lhs_spec[0]:
            return move(span, layout.out_spec[0])
        i = layout.lhs_spec.index(axis) - 2
        seen = window(
            span,
            sizes[i],
            params["window_strides"][i],
            params["padding"][i],
            params["rhs_dilation"][i],
        )
        return move(seen, layout.out_spec[i + 2])

    return [_each(maps, convolve)]


def _reduce_window(equation: JaxprEqn, arguments: list[Reach]) -> list[Reach]:
    params = equation.params
    if set(params["base_dilation"]) != {1}:
        return _unknown(equation, arguments)

    def pool(span: Span, axis: int) -> Span:
        size, stride = params["window_dimensions"][axis], params["window_strides"][axis]
        return window(span, size, stride, params["padding"][axis], params["window_dilation"][axis])

    return [_each(_union(arguments), pool)] * len(equation.outvars)


def _slice(equation: JaxprEqn, arguments: list[Reach]) -> list[Reach]:
    starts, limits, strides = (
        equation.params[name] for name in ("start_indices", "limit_indices", "strides")
    )
    strides = strides or [1] * len(starts)
    return [
        _each(arguments[0], lambda span, axis: cut(span, starts[axis], limits[axis], strides[axis]))
    ]


def _split(equation: JaxprEqn, arguments: list[Reach]) -> list[Reach]:
    ends = np.cumsum(equation.params["sizes"])
    parts = zip([0, *ends[:-1]], ends, strict=True)
    along = equation.params["axis"]

    def one(first: int, last: int) -> Reach:
        return _each(
            arguments[0], lambda span, axis: cut(span, first, last, 1) if axis == along else span
        )

    return [one(*part) for part in parts]


def _pad(equation: JaxprEqn, arguments: list[Reach]) -> list[Reach]:
    config = equation.params["padding_config"]
    reach, value = arguments
    if value or any(span.axis is not None and config[span.axis][2] for span in reach or ()):
        return _unknown(equation, arguments)
    return [_each(reach, lambda span, axis: pad(span, *config[axis][:2]))]


def _concatenate(equation: JaxprEqn, arguments: list[Reach]) -> list[Reach]:
    along = equation.params["dimension"]
    seen = [
        (reach, _shape(variable)[along])
        for reach, variable in zip(arguments, equation.invars, strict=True)
        if reach
    ]
    reaches, sizes = [reach for reach, _ in seen], [size for _, size in seen]
    if len(seen) < len(arguments):  # a part that sees no pixel has no span to concatenate
        apart = any(span.axis == along for reach in reaches for span in reach)
        return _unknown(equation, arguments) if apart else [_union(reaches)]
    return [tuple(join(spans, along, sizes) for spans in zip(*reaches, strict=True))]


def _keep(kept: Sequence[int]) -> Callable[[Span, int], Span]:
    """For a primitive whose output has the `kept` axes of its input, in that order."""
    return lambda span, axis: move(span, kept.index(axis) if axis in kept else None)


def _reduce(equation: JaxprEqn, arguments: list[Reach]) -> list[Reach]:
    gone = next(equation.params[name] for name in ("axes", "dimensions") if name in equation.params)
    kept = [axis for axis in range(len(_shape(equation.invars[0]))) if axis not in gone]
    return [_each(_union(arguments), _keep(kept))] * len(equation.outvars)


def _transpose(equation: JaxprEqn, arguments: list[Reach]) -> list[Reach]:
    return [_each(arguments[0], _keep(equation.params["permutation"]))]


def _broadcast(equation: JaxprEqn, arguments: list[Reach]) -> list[Reach]:
    before, after = _shape(equation.invars[0]), _shape(equation.outvars[0])
    axes = equation.params["broadcast_dimensions"]
    return [
        _each(
            arguments[0],
            lambda span, axis: move(
                span, axes[axis] if after[axes[axis]] == before[axis] else None
            ),
        )
    ]


def _tile(equation: JaxprEqn, arguments: list[Reach]) -> list[Reach]:
    repeats = equation.params["reps"]
    return [_each(arguments[0], lambda span, axis: span if repeats[axis] == 1 else merge(span))]


def _reshape(equation: JaxprEqn, arguments: list[Reach]) -> list[Reach]:
    before, after = _shape(equation.invars[0]), _shape(equation.outvars[0])

    def place(axis: int) -> int | None:
        """The axis with the same elements in the same order, if there is one."""
        if before[: axis + 1] == after[: axis + 1]:
            return axis
        places = (i for i in range(len(after)) if math.prod(after[:i]) == math.prod(before[:axis]))
        return next((i for i in places if after[i] == before[axis] > 1), None)

    return [_each(arguments[0], lambda span, axis: move(span, place(axis)))]


def _dot(equation: JaxprEqn, arguments: list[Reach]) -> list[Reach]:
    _, batch = equation.params["dimension_numbers"]
    reaches = []
    first_free = len(batch[0])
    for reach, contracted, shared, variable in zip(
        arguments, *equation.params["dimension_numbers"], equation.invars, strict=True
    ):
        free = [axis for axis in range(len(_shape(variable))) if axis not in (*contracted, *shared)]
        places = {axis: i for i, axis in enumerate(shared)} | {
            axis: first_free + i for i, axis in enumerate(free)
        }
        reaches.append(_moved(reach, places))
        first_free += len(free)
    return [_union(reaches)]


def _moved(reach: Reach, places: Mapping[int, int]) -> Reach:
    return _each(reach, lambda span, axis: move(span, places.get(axis)))


def _call(equation: JaxprEqn, arguments: list[Reach]) -> list[Reach]:
    inner = next(
        value for value in equation.params.values() if isinstance(value, Jaxpr | ClosedJaxpr)
    )
    return _evaluate(inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner, arguments)


def _cond(equation: JaxprEqn, arguments: list[Reach]) -> list[Reach]:
    choice, *operands = arguments
    results = [_evaluate(branch.jaxpr, operands) for branch in equation.params["branches"]]
    return [_union([choice, *outputs]) for outputs in zip(*results, strict=True)]


def _scan(equation: JaxprEqn, arguments: list[Reach]) -> list[Reach]:
    """Evaluate the body once per iteration; scanned arrays have one axis more outside the body."""
    body: Jaxpr = equation.params["jaxpr"].jaxpr

    def stacked(outside: Sequence[Any], inside: Sequence[Any]) -> list[bool]:
        return [len(_shape(a)) > len(_shape(b)) for a, b in zip(outside, inside, strict=True)]

    scanned, stacks = stacked(equation.invars, body.invars), stacked(equation.outvars, body.outvars)
    inputs = [
        _each(reach, lambda span, axis: move(span, axis - 1 if axis else None)) if over else reach
        for reach, over in zip(arguments, scanned, strict=True)
    ]
    carries = stacks.index(True) if True in stacks else len(stacks)
    # Constants come before the carry.
    first = (scanned.index(True) if True in scanned else len(scanned)) - carries
    outputs = inputs[first : first + carries] + [None] * (len(stacks) - carries)
    for _ in range(equation.params["length"]):
        result = _evaluate(body, inputs)
        inputs[first : first + carries] = result[:carries]
        outputs = result[:carries] + [
            _union(pair) for pair in zip(outputs[carries:], result[carries:], strict=True)
        ]
    return [
        _each(reach, lambda span, axis: move(span, axis + 1)) if stack else reach
        for reach, stack in zip(outputs, stacks, strict=True)
    ]


_RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(CALLS, _call),
    **dict.fromkeys(REDUCTIONS, _reduce),
    **dict.fromkeys(WINDOWS, _reduce_window),
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "cond": _cond,
    "conv_general_dilated": _convolution,
    "dot_general": _dot,
    **dict.fromkeys(("device_put", "optimization_barrier"), lambda _, arguments: arguments),
    "pad": _pad,
    "reshape": _reshape,
    "scan": _scan,
    "slice": _slice,
    "split": _split,
    "tile": _tile,
    "transpose": _transpose,
}
