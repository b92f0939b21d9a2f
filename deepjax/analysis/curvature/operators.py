"""Hessian, Gauss-Newton, Fisher and covariance matrices as linear operators."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree

from deepjax.analysis.core.instrument import instrument
from deepjax.analysis.core.layers import Layers
from deepjax.analysis.core.mode import EVAL, Mode
from deepjax.analysis.core.params import check_like, real_pairs, subtree
from deepjax.analysis.curvature.matrices import (
    PER_EXAMPLE,
    MatrixData,
    MatrixProduct,
    MatrixSpec,
    apply,
    make_matrix,
    rademacher,
)
from deepjax.analysis.network.batch import Batches
from deepjax.analysis.network.module import Loss, Model, cross_entropy, stream_key
from deepjax.errors import InputError, require


class LinearOperator:
    """A symmetric matrix over the parameters that is known by its products with vectors.

    A vector is an array (parameters,), several are columns (parameters, k), or a tree like the
    parameters; the product has the same form. Parameters are real numbers in the order of
    `jax.tree.leaves`, two for a complex one. Memory: a few times the parameters.
    """

    def __init__(self, product: MatrixProduct, data: MatrixData, spec: MatrixSpec) -> None:
        self.product, self.data = product, data
        self.spec = spec
        """Which matrix it is."""
        self.shape = (spec.parameters, spec.parameters)
        self.dtype = np.dtype(jax.eval_shape(lambda: product.flat(data.variables)[0]).dtype)

    @property
    def T(self) -> "LinearOperator":
        """The transpose: itself, as it is symmetric."""
        return self

    def __matmul__(self, vector: Any) -> Any:
        """The product with a vector, columns, or a tree; raises InputError for other shapes."""
        if not hasattr(vector, "shape"):
            return self.to_tree(self @ self.to_vector(vector))
        if len(vector.shape) == 2 and vector.shape[0] == self.shape[1]:
            columns = [self @ column for column in jnp.asarray(vector).T]
            return jnp.stack(columns, axis=1) if columns else jnp.zeros_like(vector)
        require(
            vector.shape == self.shape[1:],
            "vector",
            f"of shape {vector.shape}",
            f"({self.shape[1]},), ({self.shape[1]}, k), or a tree like the parameters",
        )
        return apply(self.data, jnp.asarray(vector, self.dtype), product=self.product)

    def to_vector(self, tree: Any) -> Array:
        """A tree like the parameters as a vector; raises InputError for another tree."""
        variables = self.data.variables
        leaves = self.product.block(variables)
        given = check_like("vector", tree, subtree(variables["params"], leaves))
        real = {path: real_pairs(leaf).astype(self.dtype) for path, leaf in given.items()}
        return ravel_pytree(real)[0]

    def to_tree(self, vector: Any) -> Any:
        """A vector as a tree like the parameters, complex where they are."""
        return self.product.to_tree(self.data.variables, jnp.asarray(vector, self.dtype))

    def to_scipy(self) -> Any:
        """A `scipy.sparse.linalg.LinearOperator`, for its eigenvalue and linear solvers."""
        from scipy.sparse.linalg import LinearOperator as ScipyOperator

        def matvec(vector: Any) -> np.ndarray:
            return np.asarray(self @ np.ravel(vector))

        options: dict[str, Any] = {"matvec": matvec, "rmatvec": matvec, "dtype": self.dtype}
        return ScipyOperator(self.shape, **options)

    def diagonal(self, key: Array | None = None, *, probes: int = 32) -> Array:
        """The diagonal, (parameters,).

        Exact for matrices of per-example gradients, by one backward pass per example. Else the mean
        of v * (A v) over `probes` vectors of random signs, whose variance is the sum of the squared
        off-diagonal entries of the row, divided by the probes.
        Source: Bekas, Kokiopoulou and Saad, "An estimator for the diagonal of a matrix", 2007.
        """
        if self.product.kind in PER_EXAMPLE:
            return jax.jit(self.product.diagonal)(self.data)
        require(isinstance(probes, int) and probes >= 1, "probes", probes, "1 or more")
        own = stream_key(self.data.key if key is None else key, "diagonal")
        total = jnp.zeros(self.shape[:1], self.dtype)
        for probe in range(probes):
            signs = rademacher(own, probe, total)
            total = total + signs * (self @ signs)
        return total / probes

    def todense(self) -> np.ndarray:
        """The matrix, for small networks: one product per row."""
        return np.asarray(self @ jnp.eye(self.shape[0], dtype=self.dtype))

    def __repr__(self) -> str:
        """Name and size."""
        rows = f"{self.shape[0]:,}"
        return f"LinearOperator: {self.spec.name}, {rows} x {rows}, {self.spec.data_text}"


@instrument
def hessian(
    model: Model,
    variables: Any,
    batch: Batches,
    *,
    loss: Loss = cross_entropy,
    mode: Mode = EVAL,
    layers: Layers = None,
    key: Array | None = None,
) -> LinearOperator:
    """The Hessian of the mean loss over the batches, as a linear operator.

    mode: in training, batch statistics are recomputed inside the loss and contribute curvature;
    dropout has one mask per batch. layers: the diagonal block of these modules' parameters.
    Pass the same loss object again: a new lambda compiles anew.
    Raises InputError for inputs or layers that do not fit.
    Cost of a product: about two forward and two backward passes, by forward-over-reverse
    differentiation; memory: activations of one batch, twice. Source: Pearlmutter 1994.
    """
    given = {"loss": loss, "mode": mode, "layers": layers, "key": key}
    return LinearOperator(*make_matrix(model, variables, batch, operator="hessian", **given))


@instrument
def gauss_newton(
    model: Model,
    variables: Any,
    batch: Batches,
    *,
    loss: Loss = cross_entropy,
    mode: Mode = EVAL,
    layers: Layers = None,
    key: Array | None = None,
) -> LinearOperator:
    """The Gauss-Newton matrix J^T H J of the mean loss, as a linear operator.

    J is the Jacobian of the network's outputs, H the Hessian of the loss with respect to them:
    the Hessian without the network's own curvature. It is positive semi-definite for a convex
    loss, and the Fisher matrix for softmax cross-entropy. Arguments, errors and cost as for
    `hessian`. Source: Schraudolph 2002; Martens 2020 (arXiv:1412.1193), section 8.
    """
    given = {"loss": loss, "mode": mode, "layers": layers, "key": key}
    return LinearOperator(*make_matrix(model, variables, batch, operator="gauss_newton", **given))


@instrument
def fisher(
    model: Model,
    variables: Any,
    batch: Batches,
    *,
    mode: Mode = EVAL,
    layers: Layers = None,
    key: Array | None = None,
    samples: int | None = None,
) -> LinearOperator:
    """The Fisher matrix of a classifier by softmax cross-entropy, as a linear operator.

    The mean over examples of the covariance of the gradient of log p(y), with y from the network's
    own distribution. samples=None: exact, as the Gauss-Newton matrix; a number: from so many
    sampled labels per example, whose mean over keys it is.
    Other arguments and errors as for `hessian`.
    Source: Martens 2020 (arXiv:1412.1193), sections 5 and 9.2.
    """
    given = {"loss": cross_entropy, "mode": mode, "layers": layers, "key": key}
    matrix = make_matrix(model, variables, batch, operator="fisher", samples=samples, **given)
    return LinearOperator(*matrix)


@instrument
def empirical_fisher(
    model: Model,
    variables: Any,
    batch: Batches,
    *,
    loss: Loss = cross_entropy,
    mode: Mode = EVAL,
    layers: Layers = None,
    key: Array | None = None,
) -> LinearOperator:
    """The mean of g g^T over the gradients g of the single examples, as a linear operator.

    With the labels of the data; it is not the Fisher matrix. Raises InputError also for training
    mode with batch statistics, in which an example has no gradient of its own. Other arguments as
    for `hessian`. Cost of a product: about two forward and two backward passes.
    Source: Kunstner, Balles and Hennig 2019 (arXiv:1905.12558).
    """
    given = {"loss": loss, "mode": mode, "layers": layers, "key": key}
    matrix = make_matrix(model, variables, batch, operator="empirical_fisher", **given)
    return LinearOperator(*matrix)


@instrument
def gradient_covariance(
    model: Model,
    variables: Any,
    batch: Batches,
    *,
    loss: Loss = cross_entropy,
    mode: Mode = EVAL,
    layers: Layers = None,
    key: Array | None = None,
) -> LinearOperator:
    """The unbiased covariance of the gradients of single examples, as a linear operator.

    Its trace is that of the noise scale. Arguments, errors and cost as for `empirical_fisher`; a
    product also takes one gradient. Raises InputError for a single example.
    """
    given = {"loss": loss, "mode": mode, "layers": layers, "key": key}
    return LinearOperator(*make_matrix(model, variables, batch, operator="covariance", **given))


@instrument
def hvp(
    model: Model,
    variables: Any,
    batch: Batches,
    vector: Any,
    *,
    loss: Loss = cross_entropy,
    mode: Mode = EVAL,
    layers: Layers = None,
    key: Array | None = None,
) -> Any:
    """`hessian(...) @ vector`: vector is a tree like the parameters, or with `layers` their part.

    Returns such a tree, float32 (float64 if a parameter is), complex where the parameters are.
    """
    given = {"loss": loss, "mode": mode, "layers": layers, "key": key}
    return hessian(model, variables, batch, **given) @ _tree(vector)


@instrument
def gnvp(
    model: Model,
    variables: Any,
    batch: Batches,
    vector: Any,
    *,
    loss: Loss = cross_entropy,
    mode: Mode = EVAL,
    layers: Layers = None,
    key: Array | None = None,
) -> Any:
    """`gauss_newton(...) @ vector`, with a vector as for `hvp`."""
    given = {"loss": loss, "mode": mode, "layers": layers, "key": key}
    return gauss_newton(model, variables, batch, **given) @ _tree(vector)


def _tree(vector: Any) -> Any:
    if hasattr(vector, "shape") and len(vector.shape) != 1:
        raise InputError(
            f"vector is an array of shape {vector.shape}; allowed: a tree like the parameters"
        )
    return vector
