"""Pooling compared with XLA's reductions and brute force.

Ties send the gradient to the first maximum.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from deepjax.models.layers import pooling
from deepjax.models.layers.pooling import adaptive_avg_pool, avg_pool, local_response_norm, max_pool

X = jax.random.normal(jax.random.key(0), (2, 9, 12, 3))


@pytest.fixture(params=["selections", "places"])
def way(request, monkeypatch):
    """Both ways to the gradient of a max pool, of which a backend and a window choose one."""
    monkeypatch.setattr(pooling, "is_faster_with_argmax", lambda *_: request.param == "places")


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    ("window", "stride", "padding"),
    [(2, 2, 0), (3, 2, 0), (3, 2, 1), (3, 1, 1), (5, 3, 2), (2, 3, 0)],
)
def test_max_pool_and_its_gradient_equal_a_reduction_s(window, stride, padding):
    """Without ties the gradient is unique.

    Flax pools by XLA's reduce_window (select-and-scatter).
    """

    def theirs(x):
        return nn.max_pool(x, (window, window), (stride, stride), ((padding, padding),) * 2)

    np.testing.assert_array_equal(max_pool(X, window, stride, padding), theirs(X))
    ours = jax.grad(lambda x: jnp.sum(jnp.sin(max_pool(x, window, stride, padding))))(X)
    np.testing.assert_allclose(ours, jax.grad(lambda x: jnp.sum(jnp.sin(theirs(x))))(X), rtol=1e-6)


@pytest.mark.usefixtures("way")
def test_no_scatter_is_compiled():
    """Neither select-and-scatter nor scatter.

    Their summation order may vary between runs on a GPU.
    """
    text = jax.jit(jax.grad(lambda x: jnp.sum(max_pool(x, 3, 2, 1)))).lower(X).compile().as_text()
    assert "scatter(" not in text


@pytest.mark.usefixtures("way")
def test_the_first_of_equals_has_the_gradient():
    gradient = jax.grad(lambda x: jnp.sum(max_pool(x, 2, 2)))(jnp.ones((1, 4, 4, 1)))
    np.testing.assert_array_equal(gradient[0, :, :, 0], np.tile([[1, 0], [0, 0]], (2, 2)))


@pytest.mark.parametrize(
    ("window", "stride", "padding", "ceil"),
    [(2, 2, 0, False), (3, 2, 0, True), (3, 2, 1, True), (3, 3, 1, True)],
)
def test_both_ways_are_one_function(monkeypatch, window, stride, padding, ceil):
    """With ties and partial windows: gradient, forward mode, second derivatives, and vmap."""
    x = jnp.round(4 * jax.random.normal(jax.random.key(0), (3, 1, 10, 13, 2))) / 4

    def loss(x):
        return jnp.sum(jnp.sin(max_pool(x, window, stride, padding, ceil)))

    def found(x):
        first = jax.grad(loss)
        return (
            loss(x),
            first(x),
            jax.jvp(loss, (x,), (jnp.cos(x),))[1],
            jax.jvp(first, (x,), (jnp.cos(x),))[1],
        )

    results = []
    for by_place in (False, True):
        monkeypatch.setattr(
            pooling, "is_faster_with_argmax", lambda *_, by_place=by_place: by_place
        )
        results.append(jax.vmap(found)(x))
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(("window", "stride", "padding"), [(2, 2, 0), (3, 2, 1)])
def test_relu_may_follow_the_pool_in_place_of_preceding_it(window, stride, padding):
    """Bitwise, with ties, zeros and windows without a positive pixel.

    On a quarter of the pixels.
    """
    x = jnp.round(2 * jax.random.normal(jax.random.key(0), (2, 12, 12, 3)) - 1) / 2

    def before(x):
        return max_pool(nn.relu(x), window, stride, padding)

    def after(x):
        return nn.relu(max_pool(x, window, stride, padding))

    np.testing.assert_array_equal(before(x), after(x))
    weights = jax.random.normal(jax.random.key(1), before(x).shape)
    gradients = [
        jax.grad(lambda x, function=function: jnp.sum(weights * function(x)))(x)
        for function in (before, after)
    ]
    assert jnp.any(before(x) == 0)
    np.testing.assert_array_equal(*gradients)


@pytest.mark.parametrize(("window", "stride"), [(2, 2), (3, 2)])
def test_the_argmax_of_a_window_is_all_that_the_backward_pass_keeps(monkeypatch, window, stride):
    monkeypatch.setattr(pooling, "is_faster_with_argmax", lambda *_: True)
    y, backward = jax.vjp(lambda x: max_pool(x, window, stride), X)
    (kept,) = jax.tree.leaves(backward)
    assert (kept.shape, kept.dtype) == (y.shape, jnp.uint8)


def test_windows_of_more_pixels_than_a_byte_numbers():
    gradient = jax.grad(lambda x: jnp.sum(max_pool(x, 17, 17)))(
        jax.random.normal(jax.random.key(0), (1, 34, 34, 2))
    )
    assert int(jnp.sum(gradient)) == 8


@pytest.mark.usefixtures("way")
def test_nan_comes_out():
    for place in range(4):
        x = jnp.zeros((1, 2, 2, 1)).reshape(-1).at[place].set(jnp.nan).reshape(1, 2, 2, 1)
        assert jnp.isnan(max_pool(x, 2, 2)).all()


@pytest.mark.parametrize(("size", "out"), [(112, 56), (56, 28), (28, 14), (14, 7), (5, 2), (6, 3)])
def test_ceil_lets_the_last_window_hang_over(size, out):
    """GoogLeNet's 112, 56, 28, 14, 7 (Table 1) need it.

    Windows of 3 and stride 2 without padding.
    """
    x = jnp.arange(size * size, dtype=jnp.float32).reshape(1, size, size, 1)
    y = max_pool(x, 3, 2, ceil=True)
    assert y.shape == (1, out, out, 1)
    assert y[0, -1, -1, 0] == x[0, min(2 * out, size - 1), min(2 * out, size - 1), 0]


def test_a_window_larger_than_the_map_is_named():
    with pytest.raises(ValueError, match="a window of 3 does not fit a map of 2 pixels"):
        max_pool(jnp.zeros((1, 2, 2, 1)), 3, 2)


def test_average_counts_the_padding():
    np.testing.assert_allclose(
        avg_pool(jnp.ones((1, 3, 3, 1)), 3, 1, 1)[0, :, :, 0] * 9, [[4, 6, 4], [6, 9, 6], [4, 6, 4]]
    )


@pytest.mark.parametrize("size", [1, 4, 7, 10])
def test_adaptive_average_by_brute_force(size):
    """Region i of n over an extent e: from floor(i e / n) to ceil((i + 1) e / n)."""
    got = adaptive_avg_pool(X, size)
    _, height, width, _ = X.shape
    for i in range(size):
        for j in range(size):
            rows = slice(i * height // size, -(-(i + 1) * height // size))
            columns = slice(j * width // size, -(-(j + 1) * width // size))
            np.testing.assert_allclose(
                got[:, i, j], X[:, rows, columns].mean((1, 2)), rtol=1e-4, atol=1e-6
            )


def test_local_response_norm_by_brute_force_and_under_jit():
    """Krizhevsky et al. 2012, section 3.3.

    B = a / (k + alpha sum a^2) ** beta over 5 neighbours.
    """
    x = 10 * jax.random.normal(jax.random.key(1), (1, 2, 2, 8))
    got = jax.jit(lambda x: local_response_norm(x, 5, 5e-4, 0.75, 2.0))(x)
    for channel in range(8):
        near = x[..., max(0, channel - 2) : channel + 3]
        np.testing.assert_allclose(
            got[..., channel],
            x[..., channel] / (2 + 1e-4 * jnp.sum(near**2, -1)) ** 0.75,
            rtol=1e-5,
        )
    assert jnp.isfinite(jax.jit(jax.grad(lambda x: jnp.sum(local_response_norm(x))))(x)).all()
