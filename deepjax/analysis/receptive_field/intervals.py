"""Interval arithmetic along one image axis: the pixels in the receptive field of each unit.

Intervals are theoretical: they extend beyond the edges of the image, and are never clipped.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Edges = NDArray[np.float64]  # pixel indices, or infinite


@dataclasses.dataclass(frozen=True, eq=False)
class Span:
    """The field of unit i along `axis` of an array is the pixels low[i] to high[i], inclusive.

    axis None: the field is the same along every axis, and low and high have one entry.
    Infinite edges: the full image. stride: pixels from one unit to the next; None where that
    varies. extent: pixels of the image.
    """

    axis: int | None
    low: Edges
    high: Edges
    stride: int | None
    extent: int


def pixels(axis: int, extent: int) -> Span:
    """The image itself: the field of a pixel is the pixel."""
    return Span(axis, np.arange(extent, dtype=float), np.arange(extent, dtype=float), 1, extent)


def full_image(extent: int) -> Span:
    """The field of every unit is, or may be, the full image."""
    return Span(None, np.array([-np.inf]), np.array([np.inf]), None, extent)


def move(span: Span, axis: int | None) -> Span:
    """The same span along another axis of the array; None merges its units (see `merge`)."""
    return merge(span) if axis is None else dataclasses.replace(span, axis=axis)


def merge(span: Span) -> Span:
    """One unit, whose field is the union of the fields of all units."""
    if span.axis is None:
        return span
    return Span(None, span.low.min(keepdims=True), span.high.max(keepdims=True), None, span.extent)


def cut(span: Span, start: int, limit: int, stride: int) -> Span:
    """A strided slice along the span's axis."""
    units = slice(start, limit, stride)
    return dataclasses.replace(
        span,
        low=span.low[units],
        high=span.high[units],
        stride=span.stride and span.stride * stride,
    )


def pad(span: Span, before: int, after: int) -> Span:
    """Padding continues the pattern of fields; without a regular stride it repeats the edge."""
    kept = cut(span, max(0, -before), len(span.low) + min(0, after), 1)
    before, after = max(0, before), max(0, after)
    steps = np.concatenate(
        [np.arange(-before, 0.0), np.zeros(len(kept.low)), np.arange(1.0, after + 1)]
    ) * (span.stride or 0)
    low, high = (
        np.pad(edges, (before, after), mode="edge") + steps for edges in (kept.low, kept.high)
    )
    return dataclasses.replace(kept, low=low, high=high)


def window(span: Span, size: int, stride: int, padding: tuple[int, int], dilation: int) -> Span:
    """A convolution or pooling along the span's axis: the union over the units of the window."""
    padded = pad(span, *padding)
    last = max(0, len(padded.low) - (size - 1) * dilation)
    views = [slice(tap * dilation, tap * dilation + last, stride) for tap in range(size)]
    low = np.min([padded.low[view] for view in views], axis=0)
    high = np.max([padded.high[view] for view in views], axis=0)
    return dataclasses.replace(
        span, low=low, high=high, stride=span.stride and span.stride * stride
    )


def union(spans: Sequence[Span]) -> Span:
    """Unit by unit the union over arrays of one shape; the full image where their axes differ."""
    axes = {span.axis for span in spans} - {None}
    if len(axes) > 1:
        return full_image(spans[0].extent)
    low = _over([span.low for span in spans], np.minimum)
    high = _over([span.high for span in spans], np.maximum)
    strides = {span.stride for span in spans}
    return Span(
        axes.pop() if axes else None,
        low,
        high,
        strides.pop() if len(strides) == 1 else None,
        spans[0].extent,
    )


def join(spans: Sequence[Span], axis: int, sizes: Sequence[int]) -> Span:
    """Concatenation of arrays of the given sizes along an axis.

    Along another axis than the span's this is a union. Concatenated regional means, whose fields
    vary along no axis, have fields that vary along this axis.
    """
    own = {span.axis for span in spans}
    same = all(
        np.array_equal(span.low, spans[0].low) and np.array_equal(span.high, spans[0].high)
        for span in spans
    )
    if own - {None, axis} or (own == {None} and same):
        return union(spans)
    low = np.concatenate(
        [np.broadcast_to(span.low, size) for span, size in zip(spans, sizes, strict=True)]
    )
    high = np.concatenate(
        [np.broadcast_to(span.high, size) for span, size in zip(spans, sizes, strict=True)]
    )
    return Span(axis, low, high, _stride(low, high), spans[0].extent)


def _over(edges: list[Edges], least: np.ufunc) -> Edges:
    total = edges[0]
    for each in edges[1:]:
        total = least(total, each)
    return total


def _stride(low: Edges, high: Edges) -> int | None:
    """The constant step between units, if there is one.

    Of the first pixels, because the last region may be truncated at the edge.
    """
    if len(low) < 2 or not np.isfinite([low, high]).all():
        return None
    steps = np.diff(low)
    return int(steps[0]) if steps[0] > 0 and (steps == steps[0]).all() else None
