"""Multiply-adds of random convolutions, matrix products and loops against naive counting."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st
from jax import lax

from deepjax.analysis.costs.counts import count_macs_by_layer, uncounted_operations
from deepjax.analysis.jaxpr.module_paths import steps
from tests.properties.examples import examples

SMALL = st.integers(1, 3)


def traced(function, *shapes, dtype=jnp.float32):
    inputs = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    return list(steps(jax.make_jaxpr(function)(*inputs).jaxpr))


@st.composite
def convolutions(draw):
    """(input shape NC..., kernel shape OI..., the options of lax.conv_general_dilated)."""
    axes = draw(st.integers(1, 2))
    groups = draw(st.sampled_from(["none", "features", "batch"]))
    count = 1 if groups == "none" else draw(st.integers(2, 3))
    batch, features, out = draw(SMALL), draw(SMALL), draw(SMALL)
    options = {
        "window_strides": [draw(SMALL) for _ in range(axes)],
        "lhs_dilation": [draw(SMALL) for _ in range(axes)],
        "rhs_dilation": [draw(SMALL) for _ in range(axes)],
        "padding": [(draw(st.integers(-1, 4)), draw(st.integers(-1, 4))) for _ in range(axes)],
        "feature_group_count": count if groups == "features" else 1,
        "batch_group_count": count if groups == "batch" else 1,
    }
    left = (batch * options["batch_group_count"], features * options["feature_group_count"])
    sides, taps = [draw(st.integers(1, 5)) for _ in range(axes)], [draw(SMALL) for _ in range(axes)]
    for side, spacing, padding in zip(
        sides, options["lhs_dilation"], options["padding"], strict=True
    ):
        # Otherwise JAX refuses.
        assume((side - 1) * spacing + 1 + sum(min(0, each) for each in padding) >= 0)
    return (*left, *sides), (out * count, features, *taps), options


def elements(side, spacing, before, after):
    """Which positions along an axis hold an element; between them and in the padding none do."""
    apart = [True, *[False] * (spacing - 1)]
    reach = 1 + abs(before) + abs(after)
    endless = apart * (reach + side + reach)
    first = reach * spacing  # where the input's own first element lies
    last = first + (side - 1) * spacing
    return endless[first - before : last + 1 + after]


@examples(few=20, many=10_000)
@given(convolutions())
def test_convolutions(case):
    left, kernel, options = case
    per_axis = []
    for side, taps, stride, spacing, dilation, padding in zip(
        left[2:],
        kernel[2:],
        options["window_strides"],
        options["lhs_dilation"],
        options["rhs_dilation"],
        options["padding"],
        strict=True,
    ):
        places = elements(side, spacing, *padding)
        starts = range(0, max(0, len(places) - (taps - 1) * dilation), stride)
        per_axis.append([places[start + tap * dilation] for start in starts for tap in range(taps)])
    spatial = sum(all(products) for products in itertools.product(*per_axis))
    pairs = itertools.product(
        range(left[0] // options["batch_group_count"]), range(kernel[0]), range(kernel[1])
    )
    counted = count_macs_by_layer(
        traced(lambda x, k: lax.conv_general_dilated(x, k, **options), left, kernel)
    )
    assert counted.get("", 0) == sum(spatial for _ in pairs)


@examples(few=20, many=10_000)
@given(st.data())
def test_matrix_products(data):
    """All-ones operands add up to the number of products."""
    sizes = {name: data.draw(SMALL) for name in "abcdef"}
    roles = {
        name: data.draw(st.sampled_from(["batch", "contracted", "left", "right"])) for name in sizes
    }
    left = data.draw(st.permutations([name for name in sizes if roles[name] != "right"]))
    right = data.draw(st.permutations([name for name in sizes if roles[name] != "left"]))
    names = {
        role: [name for name in sizes if roles[name] == role] for role in ("batch", "contracted")
    }
    numbers = [
        [[side.index(name) for name in names[role]] for side in (left, right)]
        for role in ("contracted", "batch")
    ]
    shapes = [tuple(sizes[name] for name in side) for side in (left, right)]
    counted = count_macs_by_layer(
        traced(lambda x, y: lax.dot_general(x, y, tuple(map(tuple, numbers))), *shapes)
    )
    products = np.einsum(f"{''.join(left)},{''.join(right)}->", *map(np.ones, shapes))
    assert counted[""] == products


@examples(few=20, many=10_000)
@given(
    st.integers(-6, 6),
    st.integers(-3, 3),
    st.integers(-6, 6),
    st.sampled_from(["lt", "le", "gt", "ge", "ne"]),
    st.booleans(),
)
def test_loops_of_constants(start, step, bound, comparison, mirrored):
    """The iterations of the loop in 8 bits; none if it never ends or the counter wraps around."""
    compare = getattr(lax, comparison)
    low, high = (np.int8(value) for value in (20 * start, 20 * bound))
    by = np.int8(step)

    def loop(x):
        def goes_on(carry):
            return compare(high, carry[0]) if mirrored else compare(carry[0], high)

        return lax.while_loop(
            goes_on, lambda carry: (carry[0] + by, carry[1] @ carry[1]), (low, x)
        )[1]

    taken = traced(loop, (2, 2))
    turns = by_hand(int(low), step, int(high), comparison, mirrored)
    assert count_macs_by_layer(taken) == ({"": 8 * turns} if turns else {})
    assert bool(uncounted_operations(taken)) == (turns is None)


def by_hand(value, step, bound, comparison, mirrored):
    operations = {
        "lt": int.__lt__,
        "le": int.__le__,
        "gt": int.__gt__,
        "ge": int.__ge__,
        "ne": int.__ne__,
    }
    compare, turns = operations[comparison], 0
    while compare(bound, value) if mirrored else compare(value, bound):
        value, turns = value + step, turns + 1
        if not -128 <= value <= 127 or turns > 300:
            return None
    return turns


@examples(few=20, many=10_000)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=3), SMALL, SMALL)
def test_nested_scans(lengths, rows, columns):
    def nest(lengths):
        if not lengths:
            return lambda x: (x @ jnp.ones((columns, columns)), None)
        return lambda x: (lax.scan(lambda x, _: nest(lengths[1:])(x), x, None, lengths[0])[0], None)

    counted = count_macs_by_layer(traced(lambda x: nest(lengths)(x)[0], (rows, columns)))
    assert sum(counted.values()) == math.prod(lengths) * rows * columns**2
