"""Eigenvalues of the Hessian and the Gauss-Newton matrix: the extreme ones, their density, and the gradient in their space.

Lanczos' method with full reorthogonalisation, which needs only the products of `curvature`. Ghorbani, Krishnan and Xiao, "An
investigation into neural net optimization via Hessian eigenvalue density", 2019 (arXiv:1901.10159); Papyan, "The full spectrum of
deepnet Hessians at scale", 2018 (arXiv:1811.07062); Gur-Ari, Roberts and Dyer, "Gradient descent happens in a tiny subspace", 2018
(arXiv:1812.04754).
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array, lax

from deepjax.analysis.core.batch import Batches
from deepjax.analysis.core.module import Loss, cross_entropy
from deepjax.analysis.curvature.operators import (
    Kind,
    Layers,
    MatrixSpec,
    Operator,
    Progress,
    Statistics,
    apply,
    check_finite,
    prepare,
    rademacher,
    to_tree,
)
from deepjax.errors import require

Which = Literal["magnitude", "largest", "smallest"]
ROUNDING = (
    1e-6  # of the largest entry or eigenvalue: what is below is no more than float32's rounding
)


@dataclasses.dataclass(frozen=True, eq=False)
class Eigenvalues:
    """Extreme eigenvalues of a matrix, each with how far it can be off."""

    matrix: MatrixSpec
    which: Which
    values: np.ndarray
    """(k,), the most extreme first."""
    residuals: np.ndarray
    """(k,): |A v - lambda v| of the unit vector v. A true eigenvalue lies no farther than this from lambda."""
    steps: int
    """Products that the Krylov space was made of."""
    vectors: tuple[Any, ...] | None
    """With keep=True the k unit eigenvectors, each a tree like the parameters (with layers, like their part of it)."""

    def rows(self) -> list[dict[str, Any]]:
        """A plain dict an eigenvalue."""
        pairs = zip(self.values.tolist(), self.residuals.tolist(), strict=True)
        return [
            {"index": index, "eigenvalue": value, "residual": residual}
            for index, (value, residual) in enumerate(pairs, 1)
        ]

    def plot(self, ax: Any = None) -> Any:
        """The eigenvalues with their residuals; returns the matplotlib Axes."""
        from deepjax.analysis.curvature.curvature_figures import draw_eigenvalues

        return draw_eigenvalues(self, ax)


def top_eigenvalues(
    model: nn.Module,
    variables: Any,
    batch: Batches,
    k: int = 5,
    *,
    operator: Kind = "hessian",
    which: Which = "magnitude",
    layers: Layers = None,
    bn: Statistics = "running",
    loss: Loss = cross_entropy,
    steps: int = 80,
    keep: bool = False,
    seed: int = 0,
    progress: Progress = None,
) -> Eigenvalues:
    """The k eigenvalues that are greatest in magnitude, largest or smallest, of the Hessian or the Gauss-Newton matrix.

    Lanczos' method from a Gaussian vector; where a residual is not small against its eigenvalue, more `steps` mend it. Of equal
    eigenvalues it may find one only. Other arguments, and what `bn` means, as of `hvp`.
    Raises InputError as `hvp`, for k above the steps or the parameters, and where the curvature is not finite.
    Cost: steps + k products (see `hvp`); memory (steps + k) x parameters. Source: Golub and Van Loan, "Matrix computations", 10.1.
    """
    require(
        which in ("magnitude", "largest", "smallest"),
        "which",
        which,
        "'magnitude', 'largest', 'smallest'",
    )
    product, data, matrix = prepare(model, variables, batch, operator, layers, bn, loss)
    values, vectors, residuals, used = _extremes(
        product, data, matrix, k, which, steps, seed, progress
    )
    kept = tuple(to_tree(product, data[0], vector) for vector in vectors) if keep else None
    return Eigenvalues(matrix, which, values, residuals, used, kept)


@dataclasses.dataclass(frozen=True, eq=False)
class GradientSubspace:
    """How much of the squared gradient lies in the space of a matrix's top eigenvectors."""

    matrix: MatrixSpec
    eigenvalues: np.ndarray
    """(k,), largest first."""
    residuals: np.ndarray
    """(k,), as of `Eigenvalues`."""
    shares: np.ndarray
    """(k,): share of the squared gradient in the first 1, 2, ..., k eigenvectors; NaN where the gradient is 0."""
    gradient_norm: float

    @property
    def share(self) -> float:
        """That of all k."""
        return float(self.shares[-1])

    @property
    def chance(self) -> float:
        """What a random direction would have in k: k / parameters."""
        return len(self.shares) / self.matrix.parameters

    def rows(self) -> list[dict[str, Any]]:
        """A plain dict an eigenvector."""
        columns = zip(
            self.eigenvalues.tolist(), self.residuals.tolist(), self.shares.tolist(), strict=True
        )
        return [
            {"index": index, "eigenvalue": value, "residual": residual, "share": share}
            for index, (value, residual, share) in enumerate(columns, 1)
        ]

    def plot(self, ax: Any = None) -> Any:
        """The share against the number of eigenvectors, with that of a random direction; returns the matplotlib Axes."""
        from deepjax.analysis.curvature.curvature_figures import draw_mass

        return draw_mass(self, ax)


def gradient_subspace_overlap(
    model: nn.Module,
    variables: Any,
    batch: Batches,
    k: int = 10,
    *,
    operator: Kind = "hessian",
    layers: Layers = None,
    bn: Statistics = "running",
    loss: Loss = cross_entropy,
    steps: int = 80,
    seed: int = 0,
    progress: Progress = None,
) -> GradientSubspace:
    """The share of the squared gradient norm in the space of the k largest eigenvalues' vectors.

    The gradient is of the same loss, over the same batches and by the same parameters. Arguments and errors as of
    `top_eigenvalues`. Cost: steps + k products and one gradient; memory (steps + k) x parameters.
    Source: Gur-Ari et al. 2018, section 2; Ghorbani et al. 2019, section 4.
    """
    product, data, matrix = prepare(model, variables, batch, operator, layers, bn, loss)
    values, vectors, residuals, _ = _extremes(
        product, data, matrix, k, "largest", steps, seed, progress
    )
    parts, norm = jax.device_get(_in_space(data, vectors, product=product))
    shares = (
        np.cumsum(np.square(parts, dtype=float)) / float(norm) ** 2
        if norm > 0
        else np.full(k, math.nan)
    )
    return GradientSubspace(matrix, values, residuals, np.minimum(shares, 1), float(norm))


@dataclasses.dataclass(frozen=True, eq=False)
class Density:
    """How many of a matrix's eigenvalues lie where: their density, smoothed by a Gaussian."""

    matrix: MatrixSpec
    nodes: np.ndarray
    """(probes, steps): Ritz values, ascending."""
    weights: np.ndarray
    """(probes, steps): share of the eigenvalues that a node stands for; a probe's weights add up to 1."""
    sigma: float
    """Standard deviation of the Gaussian, in units of the eigenvalues."""
    classes: int | None

    @property
    def lambda_max(self) -> float:
        """Largest eigenvalue: no Ritz value is above it, so the largest of all probes is the nearest."""
        return float(self.nodes.max())

    @property
    def lambda_min(self) -> float:
        """Smallest eigenvalue, likewise."""
        return float(self.nodes.min())

    @property
    def outlier_ratio(self) -> float:
        """lambda_1 / lambda_K for K classes, each the largest that a probe found; NaN without K, or for lambda_K not above 0."""
        if self.classes is None or self.classes > self.nodes.shape[1]:
            return math.nan
        last = float(self.nodes[:, -self.classes].max())
        return self.lambda_max / last if last > ROUNDING * np.abs(self.nodes).max() else math.nan

    @property
    def negative(self) -> float:
        """Share of the eigenvalues below -sigma; those nearer to 0 are not told from 0."""
        return float(np.where(self.nodes < -self.sigma, self.weights, 0).sum() / len(self.nodes))

    def at(self, points: Any) -> np.ndarray:
        """The density (points,), per unit of eigenvalue; its integral is 1."""
        points = np.asarray(points, float)
        total = np.zeros(len(points))
        for node, weight in zip(
            self.nodes.ravel(), self.weights.ravel(), strict=True
        ):  # all at once: points x nodes numbers
            total += weight * np.exp(-(((points - node) / self.sigma) ** 2) / 2)
        return total / (self.sigma * math.sqrt(2 * math.pi) * len(self.nodes))

    def rows(self, points: int = 1001) -> list[dict[str, Any]]:
        """A plain dict for each of `points` eigenvalues, evenly from 5 sigma below the smallest to 5 sigma above the largest."""
        grid = np.linspace(
            self.lambda_min - 5 * self.sigma, self.lambda_max + 5 * self.sigma, points
        )
        return [
            {"eigenvalue": x, "density": y}
            for x, y in zip(grid.tolist(), self.at(grid).tolist(), strict=True)
        ]

    def plot(self, ax: Any = None) -> Any:
        """The density on a logarithmic axis, with the extreme eigenvalues; returns the matplotlib Axes."""
        from deepjax.analysis.curvature.curvature_figures import draw_density

        return draw_density(self, ax)


def spectral_density(
    model: nn.Module,
    variables: Any,
    batch: Batches,
    *,
    classes: int | None = None,
    operator: Kind = "hessian",
    layers: Layers = None,
    bn: Statistics = "running",
    loss: Loss = cross_entropy,
    steps: int = 90,
    probes: int = 10,
    sigma: float | None = None,
    seed: int = 0,
    progress: Progress = None,
) -> Density:
    """The density of the eigenvalues by stochastic Lanczos quadrature: Lanczos' method from each of `probes` random sign vectors.

    classes: K of the outlier ratio. sigma: of the Gaussian, in units of the eigenvalues; default sqrt(1e-5) = 0.32 % of the range
    from smallest to largest (the reference code's variance is 1e-5 of the range itself, the same at range 1, but would
    depend on the loss's unit). Other arguments, and what `bn` means, as of `hvp`. All steps of a probe see the same batches.
    Raises InputError as `hvp`, for no steps or probes, a sigma that is not above 0, and where the curvature is not finite.
    Cost: steps x probes products (see `hvp`); memory steps x parameters.
    Source: Ghorbani et al. 2019, section 2 and appendix (90 steps, 10 probes, variance 1e-5); Yao et al. 2020, algorithm 3.
    """
    require(isinstance(probes, int) and probes >= 1, "probes", probes, "1 or more")
    require(sigma is None or sigma > 0, "sigma", sigma, "None, or above 0")
    require(classes is None or classes >= 1, "classes", classes, "None, or 1 or more")
    product, data, matrix = prepare(model, variables, batch, operator, layers, bn, loss)
    steps = _at_most(steps, matrix)
    like, _ = product.flat(data[0])
    nodes, weights = np.empty((probes, steps)), np.empty((probes, steps))
    for probe in range(probes):
        start = rademacher(seed, probe, like)
        key = jax.random.fold_in(jax.random.key(seed + 1), probe)
        krylov = _lanczos(
            product, data, start, steps, key, _part(progress, probe * steps, probes * steps)
        )
        nodes[probe], vectors = np.linalg.eigh(krylov.tridiagonal)
        weights[probe] = np.square(vectors[0])
    spread = float(nodes.max() - nodes.min()) or float(np.abs(nodes).max()) or 1.0
    return Density(matrix, nodes, weights, sigma or math.sqrt(1e-5) * spread, classes)


class _Krylov(NamedTuple):
    tridiagonal: np.ndarray
    """(steps, steps), float64."""
    basis: Array
    """(steps, parameters): orthonormal rows, of which the first is the start."""


def _lanczos(
    product: Operator, data: Any, start: Array, steps: int, key: Array, progress: Progress
) -> _Krylov:
    """The matrix in an orthonormal basis of the Krylov space. One compiled step, called `steps` times, so that progress shows.

    Own lines rather than matfree's: that divides by 0 where the space ends early, as of a Gauss-Newton matrix, whose rank is at
    most examples x classes.
    """
    basis = jnp.zeros((steps, start.size), start.dtype).at[0].set(start / _norm(start))
    scale = jnp.zeros((), start.dtype)
    entries = []
    for index in range(steps):
        basis, scale, a, b = _step(
            basis, data, scale, index, jax.random.fold_in(key, index), product=product
        )
        entries.append((check_finite(a), float(b)))
        if progress:
            progress(index + 1, steps)
    a, b = np.array(entries).T
    return _Krylov(np.diag(a) + np.diag(b[:-1], 1) + np.diag(b[:-1], -1), basis)


@functools.partial(jax.jit, static_argnames=("product",), donate_argnames=("basis",))
def _step(
    basis: Array, data: Any, scale: Array, index: Any, key: Array, *, product: Operator
) -> tuple[Array, Array, Array, Array]:
    """(basis with its next vector, largest entry so far, diagonal entry, entry beside it)."""
    vector = basis[index]
    image = product(data, vector)
    a = jnp.vdot(vector, image, precision="highest")
    rest = _without(basis, image)
    b = _norm(rest)
    scale = jnp.maximum(scale, jnp.maximum(jnp.abs(a), b))
    ended = b <= 8 * float(jnp.finfo(b.dtype).eps) * scale
    rest = lax.cond(
        ended, lambda: _without(basis, jax.random.normal(key, rest.shape, rest.dtype)), lambda: rest
    )  # another space
    basis = basis.at[index + 1].set(rest / _norm(rest), mode="drop")
    return basis, scale, a, jnp.where(ended, 0, b)


def _without(basis: Array, vector: Array) -> Array:
    """What is orthogonal to the basis. Twice, for the first pass leaves rounding of the size of the vector (Kahan, Parlett)."""
    for _ in range(2):
        parts = jnp.matmul(basis, vector, precision="highest")
        vector = vector - jnp.matmul(parts, basis, precision="highest")
    return vector


def _norm(vector: Array) -> Array:
    return jnp.sqrt(jnp.sum(jnp.square(vector)))


def _extremes(
    product: Operator,
    data: Any,
    matrix: MatrixSpec,
    k: int,
    which: Which,
    steps: int,
    seed: int,
    progress: Progress,
) -> tuple[np.ndarray, Array, np.ndarray, int]:
    """(eigenvalues, unit vectors (k, parameters), residuals, steps)."""
    steps = _at_most(steps, matrix)
    require(
        isinstance(k, int) and 1 <= k <= steps,
        "k",
        k,
        f"1 to {steps}: no more than steps, and than parameters",
    )
    start, again = jax.random.split(jax.random.key(seed))
    like, _ = product.flat(data[0])
    vector = jax.random.normal(start, like.shape, like.dtype)
    krylov = _lanczos(product, data, vector, steps, again, _part(progress, 0, steps + k))
    values, vectors = np.linalg.eigh(krylov.tridiagonal)
    rank = {"magnitude": -np.abs(values), "largest": -values, "smallest": values}[which]
    best = np.argsort(rank, kind="stable")[:k]
    units = _ritz_vectors(krylov.basis, jnp.asarray(vectors[:, best].T, like.dtype))
    residuals = []
    for index, value in enumerate(values[best]):
        image = apply(data, units[index], product=product)
        residuals.append(float(_norm(image - jnp.asarray(value, like.dtype) * units[index])))
        if progress:
            progress(steps + index + 1, steps + k)
    return values[best], units, np.array(residuals), steps


@jax.jit
def _ritz_vectors(basis: Array, parts: Array) -> Array:
    vectors = jnp.matmul(parts, basis, precision="highest")
    return vectors / jnp.sqrt(jnp.sum(jnp.square(vectors), axis=1, keepdims=True))


@functools.partial(jax.jit, static_argnames=("product",))
def _in_space(data: Any, vectors: Array, *, product: Operator) -> tuple[Array, Array]:
    """(the gradient's parts along the vectors, its norm)."""
    gradient = product.gradient(data)
    return jnp.matmul(vectors, gradient, precision="highest"), _norm(gradient)


def _at_most(steps: int, matrix: MatrixSpec) -> int:
    require(isinstance(steps, int) and steps >= 1, "steps", steps, "1 or more")
    return min(steps, matrix.parameters)


def _part(progress: Progress, done: int, total: int) -> Callable[[int, int], None] | None:
    """The progress of a part of the work, as that of the whole."""
    return progress and (lambda part, _: progress(done + part, total))
