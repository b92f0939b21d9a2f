"""Symmetric matrices that are known by their products with vectors."""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from deepjax.errors import require


class LinearOperator:
    """A symmetric matrix that is known by its products with vectors; it is never formed.

    A vector is an array (n,), several are columns (n, k); the product has the same form.
    """

    shape: tuple[int, int]
    dtype: np.dtype
    key: Array
    """Starts the random signs of `diagonal`."""

    def multiply(self, vector: Array) -> Array:
        """The product with a vector (n,)."""
        raise NotImplementedError

    @property
    def T(self) -> "LinearOperator":
        """The transpose: itself, as it is symmetric."""
        return self

    def __matmul__(self, vector: Any) -> Any:
        """The product with a vector or columns; raises InputError for other shapes."""
        if len(jnp.shape(vector)) == 2 and vector.shape[0] == self.shape[1]:
            columns = [self @ column for column in jnp.asarray(vector).T]
            return jnp.stack(columns, axis=1) if columns else jnp.zeros_like(vector)
        require(
            jnp.shape(vector) == self.shape[1:],
            "vector",
            f"of shape {jnp.shape(vector)}",
            self._allowed,
        )
        return self.multiply(jnp.asarray(vector, self.dtype))

    @property
    def _allowed(self) -> str:
        return f"({self.shape[1]},) or ({self.shape[1]}, k)"

    def to_scipy(self) -> Any:
        """A `scipy.sparse.linalg.LinearOperator`, for its eigenvalue and linear solvers."""
        from scipy.sparse.linalg import LinearOperator as ScipyOperator

        def matvec(vector: Any) -> np.ndarray:
            return np.asarray(self @ np.ravel(vector))

        options: dict[str, Any] = {"matvec": matvec, "rmatvec": matvec, "dtype": self.dtype}
        return ScipyOperator(self.shape, **options)

    def diagonal(self, key: Array | None = None, *, probes: int = 32) -> Array:
        """The diagonal, (n,), estimated unless the operator says that it is exact.

        The mean of v * (A v) over `probes` vectors of random signs, whose variance is the sum of
        the squared off-diagonal entries of the row, divided by the probes.
        Source: Bekas, Kokiopoulou and Saad, "An estimator for the diagonal of a matrix", 2007.
        """
        require(isinstance(probes, int) and probes >= 1, "probes", probes, "1 or more")
        own = jax.random.fold_in(self.key if key is None else key, zlib.crc32(b"diagonal"))
        total = jnp.zeros(self.shape[:1], self.dtype)
        for probe in range(probes):
            signs = rademacher(own, probe, total)
            total = total + signs * (self @ signs)
        return total / probes

    def todense(self) -> np.ndarray:
        """The matrix, for small networks: one product per row."""
        return np.asarray(self @ jnp.eye(self.shape[0], dtype=self.dtype))


def rademacher(key: Array, probe: int, like: Array) -> Array:
    """Random signs of the shape and dtype of an array."""
    # Not jax.random.rademacher, which under jax_enable_x64 samples in float64: other signs.
    own = jax.random.fold_in(key, probe)
    signs = jax.random.bernoulli(own, jnp.float32(0.5), like.shape)
    return jnp.where(signs, 1, -1).astype(like.dtype)
