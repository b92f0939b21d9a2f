"""Running mean and variance of gradients, and their signal-to-noise ratio.

Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
variances", 1979.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from deepjax.analysis.core.params import Path, real_leaves, sum_dtype

ROUNDING = 1e-5  # of a layer's maximum gradient: smaller ones are 0 but for float32's rounding


class Moments(NamedTuple):
    """Of the gradients so far."""

    count: Array
    mean: dict[Path, Array]
    squares: dict[Path, Array]
    """Sums of squared differences from the mean."""


def no_moments(block: Mapping[Path, Any]) -> Moments:
    """Those of no gradient with respect to these parameters."""

    def zeros() -> dict[Path, Array]:
        return {path: jnp.zeros_like(leaf) for path, leaf in real_leaves(block).items()}

    return Moments(jnp.zeros((), sum_dtype(*block.values())), zeros(), zeros())


def moments_of(gradients: Mapping[Path, Array], counted: Array) -> Moments:
    """Of gradients along a leading axis; counted: (gradients,), False for those without weight."""
    weights = counted.astype(sum_dtype(*gradients.values()))
    count = jnp.sum(weights)

    def total(leaf: Array) -> Array:
        return jnp.tensordot(weights, leaf, axes=1, precision="highest")

    mean = {path: total(leaf) / count for path, leaf in gradients.items()}
    squares = {path: total(jnp.square(leaf - mean[path][None])) for path, leaf in gradients.items()}
    return Moments(count, mean, squares)


def merge_moments(a: Moments, b: Moments) -> Moments:
    """Moments of both parts.

    Mean of squares minus square of the mean would cancel where the signal is strong.
    """
    count = a.count + b.count
    mean = jax.tree.map(lambda x, y: x + (y - x) * (b.count / count), a.mean, b.mean)
    between = jax.tree.map(
        lambda x, y: jnp.square(y - x) * (a.count * b.count / count), a.mean, b.mean
    )
    squares = jax.tree.map(lambda x, y, z: x + y + z, a.squares, b.squares, between)
    return Moments(count, mean, squares)


def signal_to_noise(means: Sequence[Array], variances: Sequence[Array], count: Array) -> Array:
    """Mean over parameters of mean^2 / variance, less what noise alone has.

    Unbiased: for n Gaussian gradients, E[mean^2 / var] = (ratio + 1/n) (n - 1) / (n - 3).
    """
    mean, variance = (
        jnp.concatenate([jnp.ravel(leaf) for leaf in leaves]) for leaves in (means, variances)
    )
    sizes = jnp.square(mean) + variance
    alive = sizes > ROUNDING**2 * jnp.max(sizes)
    ratios = jnp.where(alive, jnp.square(mean) / jnp.where(alive, variance, 1), 0)
    average = jnp.sum(ratios) / jnp.sum(alive.astype(ratios.dtype))
    return jnp.where(count > 3, average * (count - 3) / (count - 1) - 1 / count, jnp.nan)
