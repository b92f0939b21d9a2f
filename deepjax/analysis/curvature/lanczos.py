"""Lanczos' method with full reorthogonalisation: tridiagonal form and extreme eigenpairs.

Golub and Van Loan, "Matrix computations", chapter 10.
"""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from deepjax.analysis.core.options import Progress
from deepjax.analysis.curvature.matrices import (
    MatrixData,
    MatrixProduct,
    MatrixSpec,
    apply,
    check_finite,
)
from deepjax.analysis.network.module import stream_key
from deepjax.backend.conv_layouts import canonicalize_conv_layouts
from deepjax.errors import require

Which = Literal["magnitude", "largest", "smallest"]
Start = Literal["random", "gradient"]
"""Start vector: a Gaussian one, or the gradient, which needs fewer steps for the largest."""


class Krylov(NamedTuple):
    """The matrix in an orthonormal basis of a Krylov space."""

    tridiagonal: np.ndarray
    """(steps, steps), float64."""
    basis: Array
    """(steps, parameters): orthonormal rows, the first of which is the normalised start vector."""


class Eigenpairs(NamedTuple):
    """Ritz values and vectors."""

    values: np.ndarray
    """(k,)"""
    vectors: Array
    """(k, parameters), of unit length."""
    residuals: np.ndarray
    """(k,): |A v - lambda v|."""
    steps: int


def lanczos(
    product: MatrixProduct,
    data: MatrixData,
    start: Array,
    steps: int,
    key: Array,
    progress: Progress,
) -> Krylov:
    """Lanczos' method from a start vector. One compiled step is called `steps` times.

    Not matfree's: it divides by 0 where the Krylov space ends early, as for a Gauss-Newton
    matrix, whose rank is at most examples x classes.
    """
    basis = jnp.zeros((steps, start.size), start.dtype).at[0].set(start / norm(start))
    scale = jnp.zeros((), start.dtype)
    entries = []
    for index in range(steps):
        basis, scale, a, b = lanczos_step(
            basis, data, scale, index, jax.random.fold_in(key, index), product=product
        )
        entries.append((check_finite(a), float(b)))
        if progress:
            progress(index + 1, steps)
    a, b = np.array(entries).T
    return Krylov(np.diag(a) + np.diag(b[:-1], 1) + np.diag(b[:-1], -1), basis)


def extreme_eigenpairs(
    product: MatrixProduct,
    data: MatrixData,
    matrix: MatrixSpec,
    k: int,
    which: Which,
    steps: int,
    progress: Progress,
    start: Start = "random",
) -> Eigenpairs:
    """The k most extreme eigenpairs, by Lanczos' method."""
    steps = limit_steps(steps, matrix)
    require(
        isinstance(k, int) and 1 <= k <= steps,
        "k",
        k,
        f"1 to {steps}: no more than steps, and than parameters",
    )
    sampled, again = (stream_key(data.key, name) for name in ("start", "restart"))
    like, _ = product.flat(data.variables)
    vector = jax.random.normal(sampled, like.shape, like.dtype)
    if start == "gradient":
        gradient = gradient_of(data, product=product)
        vector = jnp.where(norm(gradient) > 0, gradient, vector)
    krylov = lanczos(product, data, vector, steps, again, partial_progress(progress, 0, steps + k))
    values, vectors = np.linalg.eigh(krylov.tridiagonal)
    rank = {"magnitude": -np.abs(values), "largest": -values, "smallest": values}[which]
    best = np.argsort(rank, kind="stable")[:k]
    units = _ritz_vectors(krylov.basis, jnp.asarray(vectors[:, best].T, like.dtype))
    residuals = []
    for index, value in enumerate(values[best]):
        image = apply(data, units[index], product=product)
        residuals.append(float(norm(image - jnp.asarray(value, like.dtype) * units[index])))
        if progress:
            progress(steps + index + 1, steps + k)
    return Eigenpairs(values[best], units, np.array(residuals), steps)


@functools.partial(jax.jit, static_argnames=("product",))
@canonicalize_conv_layouts
def gradient_of(data: MatrixData, *, product: MatrixProduct) -> Array:
    """The gradient of the loss with respect to the matrix's parameters."""
    return product.gradient(data)


def limit_steps(steps: int, matrix: MatrixSpec) -> int:
    """The number of steps, at most that of parameters; raises InputError below 1."""
    require(isinstance(steps, int) and steps >= 1, "steps", steps, "1 or more")
    return min(steps, matrix.parameters)


def partial_progress(progress: Progress, done: int, total: int) -> Progress:
    """Progress of one part of the work, reported as that of the total, after `done` units."""
    return progress and (lambda part, _: progress(done + part, total))


def norm(vector: Array) -> Array:
    """L2 norm."""
    return jnp.sqrt(jnp.sum(jnp.square(vector)))


@functools.partial(jax.jit, static_argnames=("product",), donate_argnames=("basis",))
@canonicalize_conv_layouts
def lanczos_step(
    basis: Array, data: MatrixData, scale: Array, index: Any, key: Array, *, product: MatrixProduct
) -> tuple[Array, Array, Array, Array]:
    """(basis with its next vector, largest entry so far, diagonal entry, off-diagonal entry)."""
    vector = basis[index]
    image = product(data, vector)
    a = jnp.vdot(vector, image, precision="highest")
    rest = _orthogonalise(basis, image)
    b = norm(rest)
    scale = jnp.maximum(scale, jnp.maximum(jnp.abs(a), b))
    ended = b <= 8 * float(jnp.finfo(b.dtype).eps) * scale
    # Where the space has ended, the method continues in another one, from a random vector.
    rest = lax.cond(
        ended,
        lambda: _orthogonalise(basis, jax.random.normal(key, rest.shape, rest.dtype)),
        lambda: rest,
    )
    basis = basis.at[index + 1].set(rest / norm(rest), mode="drop")
    return basis, scale, a, jnp.where(ended, 0, b)


def _orthogonalise(basis: Array, vector: Array) -> Array:
    """The component orthogonal to the basis.

    Two passes: the first leaves rounding errors of the size of the vector (Kahan, Parlett).
    """
    for _ in range(2):
        parts = jnp.matmul(basis, vector, precision="highest")
        vector = vector - jnp.matmul(parts, basis, precision="highest")
    return vector


@jax.jit
def _ritz_vectors(basis: Array, parts: Array) -> Array:
    vectors = jnp.matmul(parts, basis, precision="highest")
    return vectors / jnp.sqrt(jnp.sum(jnp.square(vectors), axis=1, keepdims=True))
