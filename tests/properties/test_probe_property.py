"""A probe's gradient is that of an addition to the output, under any stack of transformations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from deepjax.analysis.core.cotangent_slot import probe
from deepjax.analysis.network.calls import map_arrays
from deepjax.analysis.network.taps import Site, labels
from tests.properties.examples import examples

SIZE = 3
TRANSFORMATIONS = {
    "grad": lambda f: lambda x: jax.grad(lambda each: jnp.sum(jnp.sin(f(each))))(x),
    "jvp": lambda f: lambda x: jax.jvp(f, (x,), (jnp.cos(x),))[1],
    "vjp": lambda f: lambda x: jax.vjp(f, x)[1](x)[0],
    "jacfwd": lambda f: lambda x: jax.jacfwd(f)(x).sum(axis=0),
    "jit": jax.jit,
    "checkpoint": jax.checkpoint,
    "vmap": lambda f: lambda x: jax.vmap(f)(jnp.stack([x, 2.0 * x])).sum(axis=0),
    "scan": lambda f: (
        lambda x: jax.lax.scan(lambda carry, _: (f(carry), None), x, None, length=2)[0]
    ),
    "cond": lambda f: lambda x: jax.lax.cond(x[0] > 0, f, jnp.sin, x),
    "twice": lambda f: lambda x: f(f(x)),
}


@examples(few=8, many=1000)
@given(st.lists(st.sampled_from(sorted(TRANSFORMATIONS)), max_size=3), st.integers(0, 2**16))
def test_the_gradient_of_a_probe_is_that_of_an_addition(stack, seed):
    weights, inputs = jnp.asarray(
        np.random.default_rng(seed).normal(size=(2, SIZE, SIZE)), jnp.float32
    )

    def loss(seen, added, slot):
        def layer(x):
            x = jnp.tanh(weights @ x) + added
            return jnp.sin(probe(x, slot, jnp.ones(()), lambda cotangent: cotangent) if seen else x)

        return jnp.sum(
            jnp.square(
                functools.reduce(lambda f, name: TRANSFORMATIONS[name](f), stack, layer)(inputs[0])
            )
        )

    @jax.jit
    def both():
        zeros = jnp.zeros(SIZE)
        by_hand = jax.value_and_grad(functools.partial(loss, False))(zeros, None)
        return by_hand, jax.value_and_grad(functools.partial(loss, True), argnums=1)(
            zeros, (jnp.zeros(()), zeros)
        )

    (plain, by_hand), (value, (_, measured)) = both()
    np.testing.assert_allclose(value, plain, rtol=1e-4)
    np.testing.assert_allclose(
        measured, by_hand, rtol=1e-3, atol=1e-3 * float(jnp.abs(by_hand).max()) + 1e-5
    )


trees = st.recursive(
    st.sampled_from(["float", "complex", "int", "empty", None, "text"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("ba/", max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)
LEAVES = {
    "float": jnp.ones(2),
    "complex": jnp.ones(2, jnp.complex64),
    "int": jnp.ones(2, jnp.int32),
    "empty": jnp.ones(0),
}


@examples(few=20, many=10_000)
@given(trees)
def test_all_arrays_of_floats_among_outputs_are_seen_and_nothing_else_changes(tree):
    def built(node):
        if isinstance(node, list | dict):
            return (
                [built(each) for each in node]
                if isinstance(node, list)
                else {key: built(node[key]) for key in node}
            )
        return LEAVES.get(node, node)

    def order(node):
        if isinstance(node, list | dict):
            return [
                (key, order(each))
                for key, each in (enumerate(node) if isinstance(node, list) else node.items())
            ]
        return id(node)

    seen = []
    outputs = built(tree)
    returned = map_arrays(lambda value, place: seen.append(place) or value, outputs, "")
    assert order(returned) == order(outputs)
    assert (
        len(set(seen))
        == len(seen)
        == sum(each in ("float", "complex") for each in jax.tree.leaves(tree))
    )


shapes = st.lists(st.integers(1, 2), max_size=2).map(tuple)
sites = st.builds(
    Site,
    path=st.sampled_from([(), ("a",), ("a", "b"), ("a/b",)]),
    output=st.sampled_from(["", "[0]", ".encode()"]),
    kind=st.sampled_from(["Dense", "Add"]),
    name=st.sampled_from([None, "a"]),
    shape=shapes,
    dtype=st.sampled_from(["float32", "bfloat16"]),
    arguments=st.lists(st.none() | shapes, max_size=2).map(tuple),
    is_sum=st.just(False),
    calls=st.just(1),
    in_transform=st.just(False),
)


@examples(few=20, many=10_000)
@given(st.lists(sites, unique=True, max_size=8))
def test_no_two_outputs_of_a_layer_have_one_label(at):
    told = list(zip((site.path for site in at), labels(at), strict=True))
    assert len(set(told)) == len(told)
