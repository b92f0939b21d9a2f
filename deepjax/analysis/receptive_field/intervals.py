"""Interval arithmetic along one axis of the images: which pixels each unit of an array can see.

Places count on beyond the image's edges, as if it had no end: a span is the theoretical one, never clipped.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Edges = NDArray[np.float64]  # whole pixels, or an infinity


@dataclasses.dataclass(frozen=True, eq=False)
class Span:
    """Unit i along `axis` of an array sees the pixels low[i] to high[i], both included, of an image of `extent` pixels.

    axis None: the place does not vary along any axis of the array, and low and high have one entry. Infinite: the whole image.
    jump: pixels from one unit to the next; None where they are not equally far apart.
    """

    axis: int | None
    low: Edges
    high: Edges
    jump: int | None
    extent: int


def pixels(axis: int, extent: int) -> Span:
    """The image itself: each pixel sees itself."""
    return Span(axis, np.arange(extent, dtype=float), np.arange(extent, dtype=float), 1, extent)


def whole(extent: int) -> Span:
    """Every unit sees, or may see, the whole image."""
    return Span(None, np.array([-np.inf]), np.array([np.inf]), None, extent)


def move(span: Span, axis: int | None) -> Span:
    """The same span along another axis of the array; None merges its units (see `merge`)."""
    return merge(span) if axis is None else dataclasses.replace(span, axis=axis)


def merge(span: Span) -> Span:
    """One unit that sees what all units together see."""
    if span.axis is None:
        return span
    return Span(None, span.low.min(keepdims=True), span.high.max(keepdims=True), None, span.extent)


def cut(span: Span, start: int, limit: int, stride: int) -> Span:
    """A strided slice along the span's own axis."""
    units = slice(start, limit, stride)
    return dataclasses.replace(
        span, low=span.low[units], high=span.high[units], jump=span.jump and span.jump * stride
    )


def pad(span: Span, before: int, after: int) -> Span:
    """Padding sees what the map would see if it went on; where units are not equally far apart, what the edge sees."""
    kept = cut(span, max(0, -before), len(span.low) + min(0, after), 1)
    before, after = max(0, before), max(0, after)
    steps = np.concatenate(
        [np.arange(-before, 0.0), np.zeros(len(kept.low)), np.arange(1.0, after + 1)]
    ) * (span.jump or 0)
    low, high = (
        np.pad(edges, (before, after), mode="edge") + steps for edges in (kept.low, kept.high)
    )
    return dataclasses.replace(kept, low=low, high=high)


def window(span: Span, size: int, stride: int, padding: tuple[int, int], dilation: int) -> Span:
    """A convolution or a pool along the span's own axis: each unit sees what the units under its window see."""
    padded = pad(span, *padding)
    last = max(0, len(padded.low) - (size - 1) * dilation)
    views = [slice(tap * dilation, tap * dilation + last, stride) for tap in range(size)]
    low = np.min([padded.low[view] for view in views], axis=0)
    high = np.max([padded.high[view] for view in views], axis=0)
    return dataclasses.replace(span, low=low, high=high, jump=span.jump and span.jump * stride)


def union(spans: Sequence[Span]) -> Span:
    """What units of arrays of one shape see together, unit by unit; the whole image where their axes differ."""
    axes = {span.axis for span in spans} - {None}
    if len(axes) > 1:
        return whole(spans[0].extent)
    low = _over([span.low for span in spans], np.minimum)
    high = _over([span.high for span in spans], np.maximum)
    jumps = {span.jump for span in spans}
    return Span(
        axes.pop() if axes else None,
        low,
        high,
        jumps.pop() if len(jumps) == 1 else None,
        spans[0].extent,
    )


def join(spans: Sequence[Span], axis: int, sizes: Sequence[int]) -> Span:
    """Arrays of the given sizes, laid one after the other along an axis of theirs.

    Along any other axis than the span's own this is a union. Regional means, whose places vary along no axis, are a map again.
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
    return Span(axis, low, high, _jump(low, high), spans[0].extent)


def _over(edges: list[Edges], least: np.ufunc) -> Edges:
    total = edges[0]
    for each in edges[1:]:
        total = least(total, each)
    return total


def _jump(low: Edges, high: Edges) -> int | None:
    """The step from unit to unit, if there is one: of the first pixels, since a last region may be cut short at the edge."""
    if len(low) < 2 or not np.isfinite([low, high]).all():
        return None
    steps = np.diff(low)
    return int(steps[0]) if steps[0] > 0 and (steps == steps[0]).all() else None
