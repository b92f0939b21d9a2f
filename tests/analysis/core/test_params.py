"""Instruments on boxed, oddly named, complex and float64 parameters.

Expected: jax.grad and jax.hessian of one real vector.
"""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from deepjax.analysis import (
    gnvp,
    gradient_subspace_overlap,
    hessian_trace,
    hvp,
    kernel_norms,
    linear_interpolation,
    linearised,
    linearised_training,
    loss_line,
    noise_scale,
    ntk,
    per_example_gradients,
    random_direction,
    spectral_density,
    top_eigenvalues,
    trace,
    trajectory,
)
from deepjax.analysis.core.mode import EVAL
from deepjax.errors import InputError
from tests.zoo import Attention, Odd, Typed

KINDS = {"odd": (Odd(), False, 3e-4), "float64": (Typed(jnp.float64), True, 1e-10)}
"""Network, whether under jax_enable_x64, relative tolerance."""


def to_vector(tree):
    """Real parts, then imaginary parts, leaf by leaf."""
    leaves = jax.tree.leaves(nn.meta.unbox(tree))
    parts = [(leaf.real, leaf.imag) if jnp.iscomplexobj(leaf) else (leaf,) for leaf in leaves]
    flat = [part.ravel() for each in parts for part in each]
    return (
        jnp.concatenate(flat)
        if any(isinstance(each, jax.core.Tracer) for each in flat)
        else np.concatenate(flat)
    )


def from_vector(vector, like):
    leaves, structure = jax.tree.flatten(nn.meta.unbox(like))
    found = []
    for leaf in leaves:
        parts = 2 if jnp.iscomplexobj(leaf) else 1
        taken, vector = jnp.split(vector, [parts * leaf.size])
        taken = taken.reshape(parts, *leaf.shape)
        found.append(jax.lax.complex(*taken) if parts == 2 else taken[0])
    return jax.tree.unflatten(structure, found)


@functools.cache
def truth(kind):
    """Losses of single examples and of all as functions of a vector; gradients and Hessian."""
    model, _, _ = KINDS[kind]
    dtype = jnp.float64 if kind == "float64" else jnp.float32
    x = jax.random.normal(jax.random.key(1), (8, 4), dtype)
    labels = jnp.arange(8) % 3
    variables = jax.jit(model.init)(jax.random.key(0), x)
    vector = to_vector(variables["params"])

    def outputs(vector, x=x):
        return model.apply({"params": from_vector(vector, variables["params"])}, x)

    def losses(vector):
        return -jnp.take_along_axis(jax.nn.log_softmax(outputs(vector)), labels[:, None], 1)[:, 0]

    def mean(vector):
        return losses(vector).mean()

    @jax.jit
    def derivatives(vector):
        return (
            jax.jacrev(losses)(vector),
            jax.grad(mean)(vector),
            jax.hessian(mean)(vector),
            jax.jacrev(outputs)(vector),
        )

    names = ("gradients", "gradient", "hessian", "jacobian")
    found = dict(zip(names, derivatives(vector), strict=True))
    return SimpleNamespace(
        model=model,
        variables=variables,
        batch=(x, labels),
        vector=vector,
        outputs=outputs,
        mean=mean,
        **found,
    )


@pytest.fixture(params=KINDS)
def case(request):
    _, x64, rtol = KINDS[request.param]
    with jax.enable_x64(x64):
        yield (
            truth(request.param),
            functools.partial(np.testing.assert_allclose, rtol=rtol, atol=rtol / 10),
        )


def random_like(params, seed=3):
    vector = to_vector(params)
    return from_vector(jax.random.normal(jax.random.key(seed), vector.shape, vector.dtype), params)


def test_products(case):
    this, same = case
    vector = random_like(this.variables["params"])
    found = hvp(this.model, this.variables, this.batch, vector)
    assert jax.tree.structure(found) == jax.tree.structure(vector)
    same(to_vector(found), this.hessian @ to_vector(vector))
    probabilities = jax.nn.softmax(this.outputs(this.vector))
    inner = jax.vmap(lambda p: jnp.diag(p) - jnp.outer(p, p))(probabilities) / len(probabilities)
    matrix = jnp.einsum("nip,nij,njq->pq", this.jacobian, inner, this.jacobian)
    same(
        to_vector(gnvp(this.model, this.variables, this.batch, vector)), matrix @ to_vector(vector)
    )


def test_eigenvalues(case):
    this, same = case
    expected, vectors = np.linalg.eigh(this.hessian)
    found = top_eigenvalues(this.model, this.variables, this.batch, 2, which="largest", keep=True)
    same(found.values, expected[::-1][:2])
    assert found.matrix.parameters == this.vector.size
    same(np.abs(to_vector(found.vectors[0]) @ vectors[:, -1]), 1)


def test_trace_density_and_gradient_mass(case):
    this, same = case
    estimates = hessian_trace(this.model, this.variables, this.batch, probes=32).estimates
    off = this.hessian - jnp.diag(jnp.diag(this.hessian))
    error = float(jnp.sqrt(2 / 32) * jnp.linalg.norm(off))  # Hutchinson 1990
    assert np.mean(estimates) == pytest.approx(float(jnp.trace(this.hessian)), abs=4 * error)
    expected, vectors = np.linalg.eigh(this.hessian)
    density = spectral_density(this.model, this.variables, this.batch, probes=1)
    same([density.lambda_max, density.lambda_min], [expected[-1], expected[0]])
    mass = gradient_subspace_overlap(this.model, this.variables, this.batch, 2)
    same(mass.gradient_norm, np.linalg.norm(this.gradient))
    same(mass.fraction, np.sum((vectors[:, -2:].T @ this.gradient) ** 2) / np.sum(this.gradient**2))


def test_gradients_of_examples(case):
    this, same = case
    found = per_example_gradients(this.model, this.variables, this.batch, keep=True, chunk=4)
    same(np.linalg.norm([row.mean_norm for row in found.layers]), np.linalg.norm(this.gradient))
    same(sum(row.variance for row in found.layers), np.var(this.gradients, axis=0, ddof=1).sum())
    assert sum(row.parameters for row in found.layers) == this.vector.size
    same(jax.vmap(to_vector)(found.gradients), this.gradients)


def test_noise_scale(case):
    this, same = case
    found = noise_scale(this.model, this.variables, [this.batch], small=2)
    big = np.sum(this.gradient**2)
    small = np.mean(np.sum(this.gradients.reshape(4, 2, -1).mean(1) ** 2, axis=1))
    same(
        [found.g2, found.trace_sigma], [(8 * big - 2 * small) / 6, (small - big) / (1 / 2 - 1 / 8)]
    )


def test_losses_on_lines(case):
    this, same = case
    points, params = [-1.0, 0.0, 0.5, 1.0], this.variables["params"]
    direction = random_like(params)
    along = loss_line(this.model, this.variables, this.batch, direction, alphas=points)
    same(along.loss, [this.mean(this.vector + t * to_vector(direction)) for t in points])
    other = {"params": random_like(params, 4)}
    weights = [0, 0.5, 1]
    between = linear_interpolation(this.model, this.variables, other, this.batch, alphas=weights)
    ends = this.vector, to_vector(other["params"])
    same(between.loss, [this.mean((1 - t) * ends[0] + t * ends[1]) for t in (0, 0.5, 1)])


def test_directions_and_trajectories(case):
    this, same = case
    params = nn.meta.unbox(this.variables["params"])
    direction = random_direction(this.variables, jax.random.key(5), "layer")
    for found, leaf in zip(jax.tree.leaves(direction), jax.tree.leaves(params), strict=True):
        if np.any(found):
            same(np.linalg.norm(found), np.linalg.norm(leaf))
    points = [random_like(params, seed) for seed in (1, 2, 3)]
    found = trajectory([*points, this.variables["params"]])
    vectors = np.stack([to_vector(point) for point in (*points, params)])
    centred = vectors - vectors.mean(0)
    _, scales, axes = np.linalg.svd(centred, full_matrices=False)
    same(found.explained_variance_ratio, scales[:3] ** 2 / np.sum(scales**2))
    same(np.abs([to_vector(found.directions[i]) @ axes[i] for i in (0, 1)]), 1)


def test_kernels_and_linearised_networks(case):
    this, same = case
    x, labels = this.batch
    found = ntk(this.model, this.variables, x, output="full", chunk=3)
    same(found.matrix, np.einsum("iap,jbp->ijab", this.jacobian, this.jacobian))
    assert found.parameters == this.vector.size
    moved = random_like(this.variables["params"])
    line = linearised(this.model, this.variables)(moved, x)
    same(line, this.outputs(this.vector) + this.jacobian @ (to_vector(moved) - this.vector))
    rate = 0.1
    run = linearised_training(this.model, this.variables, this.batch, steps=1, learning_rate=rate)
    half = jax.grad(
        lambda vector: (
            jnp.sum((this.outputs(vector) - jax.nn.one_hot(labels, 3, dtype=x.dtype)) ** 2) / 16
        )
    )
    same(to_vector(run.params), this.vector - rate * half(this.vector))


def test_layers(case):
    this, same = case
    rows = trace(this.model, this.variables, this.batch, mode=EVAL).layers
    same(np.linalg.norm([row.weight_norm or 0 for row in rows]), np.linalg.norm(this.vector))
    same(
        np.linalg.norm([row.parameter_gradient_norm or 0 for row in rows]),
        np.linalg.norm(this.gradient),
    )
    gradients = jax.grad(lambda params: this.mean(to_vector(params)))(
        nn.meta.unbox(this.variables["params"])
    )
    squares = [np.sum(np.abs(leaf) ** 2) for leaf in jax.tree.leaves(gradients) if leaf.ndim >= 2]
    names = kernel_norms(gradients)
    same(np.sum(np.square(list(names.values()))), np.sum(squares))


def test_float32_networks_under_x64():
    """Expected: the results without jax_enable_x64, which the other tests validate."""
    model = Typed(jnp.float32)
    x, labels = (
        np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32),
        np.arange(8, dtype=np.int32) % 3,
    )
    variables = jax.device_get(jax.jit(model.init)(jax.random.key(0), x))

    def numbers():
        given = model, variables, (x, labels)
        direction = random_direction(variables, jax.random.key(1))
        return [
            *(row.gsnr for row in per_example_gradients(*given, chunk=3).layers),
            *top_eigenvalues(*given, 2).values,
            *spectral_density(*given, probes=1, steps=5).nodes.ravel(),
            hessian_trace(*given, probes=1).trace,
            noise_scale(model, variables, [given[2]], small=2).g2,
            gradient_subspace_overlap(*given, 2).fraction,
            *loss_line(*given, direction, alphas=[0, 1]).loss,
            *ntk(model, variables, x).eigenvalues[:2],
            *(row.parameter_gradient_norm for row in trace(*given).layers if row.weight_norm),
        ]

    expected = numbers()
    with jax.enable_x64(True):
        np.testing.assert_allclose(numbers(), expected, rtol=1e-3, atol=1e-5)


def test_attention_has_a_filter_for_each_head_and_feature():
    """As a matrix (inputs, outputs), a column of the direction has the norm of the network's."""
    x = jnp.ones((1, 4))
    for use_bias in (True, False):
        params = Attention(use_bias).init(jax.random.key(0), x)["params"][
            "MultiHeadDotProductAttention_0"
        ]
        found = random_direction({"params": params}, jax.random.key(1))
        for name in ("query", "key", "value", "out"):
            flat = [
                np.reshape(tree[name]["kernel"], (-1, 3) if name == "out" else (2, -1))
                for tree in (found, params)
            ]
            np.testing.assert_allclose(*(np.linalg.norm(each, axis=0) for each in flat), rtol=1e-5)
            assert not np.any(found[name].get("bias", 0))


def test_directions_of_general_kernels():
    """The bias gives the axes of filters and layers; axes= is needed where it fits in two ways."""

    def lengths(kernel, bias, **given):
        params = {
            "layer": {
                "kernel": jax.random.normal(jax.random.key(0), kernel),
                "bias": jnp.ones(bias),
            }
        }
        found = random_direction({"params": params}, jax.random.key(1), **given)
        inside = {(5, 2, 3): 0, (2, 3, 4): (0, 1), (2, 5, 3, 4): 1}[kernel]
        return [np.linalg.norm(t["layer"]["kernel"], axis=inside) for t in (found, params)]

    for kernel, bias in (((5, 2, 3), (2, 3)), ((2, 3, 4), (4,)), ((2, 5, 3, 4), (2, 3, 4))):
        np.testing.assert_allclose(*lengths(kernel, bias), rtol=1e-5)
    with pytest.raises(
        InputError,
        match=r"shape \(2, 2, 4\) with a bias \(2, 4\), whose axes fit in more than one way",
    ):
        lengths((2, 2, 4), (2, 4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m, v, b: hvp(m, v, b, jax.tree.map(jnp.real, nn.meta.unbox(v["params"]))),
            "complex/b is 'float32'; allowed: complex64",
        ),
        (
            lambda m, v, b: top_eigenvalues(
                m, v, b, loss=lambda z, _: jnp.sum(z.astype(jnp.complex64))
            ),
            "loss returned complex64",
        ),
        (
            lambda m, v, b: top_eigenvalues(m, v, b, layers="names"),
            "layer 'names' is unknown; did you mean 'named'",
        ),
    ],
)
def test_what_does_not_fit(call, message):
    this = truth("odd")
    with pytest.raises(InputError, match=message):
        call(this.model, this.variables, this.batch)


def test_layers_by_name_of_oddly_named_parameters():
    """A diagonal block of the matrix: the leaf's own name has "/" in it."""
    this = truth("odd")
    name = "named/outer/Dense_0/kernel/scale"
    found = top_eigenvalues(
        this.model, this.variables, this.batch, 1, which="largest", layers=name, keep=True
    )
    marked = jax.tree.map(jnp.zeros_like, nn.meta.unbox(this.variables["params"]))
    marked["named"]["outer"]["Dense_0/kernel/scale"] = jnp.ones(3)
    block = np.flatnonzero(to_vector(marked))
    np.testing.assert_allclose(
        found.values, np.linalg.eigvalsh(this.hessian[np.ix_(block, block)])[-1:], rtol=1e-3
    )
    assert list(found.vectors[0]["named"]["outer"]) == ["Dense_0/kernel/scale"]
