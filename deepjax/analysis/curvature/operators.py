"""Hessian, Gauss-Newton, Fisher and covariance matrices as linear operators."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree

from deepjax.analysis.core.instrument import instrument
from deepjax.analysis.core.layers import Layers
from deepjax.analysis.core.linear_operator import LinearOperator
from deepjax.analysis.core.mode import EVAL, Mode
from deepjax.analysis.core.params import check_like, real_pairs, subtree
from deepjax.analysis.curvature.matrices import (
    PER_EXAMPLE,
    MatrixData,
    MatrixProduct,
    MatrixSpec,
    apply,
    exact_diagonal,
    make_matrix,
)
from deepjax.analysis.network.batch import Batches
from deepjax.analysis.network.module import Loss, Model, cross_entropy
from deepjax.errors import InputError


class ParameterOperator(LinearOperator):
    """A symmetric matrix over the parameters, known by its products with vectors.

    A vector is an array (parameters,), several are columns (parameters, k), or a tree like the
    parameters; the product has the same form. Parameters are real numbers in the order of
    `jax.tree.leaves`, two for a complex one. Memory: the activations of one batch, and a few
    times the parameters. The diagonal is exact for matrices of per-example gradients, by one
    backward pass per example.
    """

    def __init__(self, product: MatrixProduct, data: MatrixData, spec: MatrixSpec) -> None:
        self.product, self.data = product, data
        self.spec = spec
        """Which matrix it is."""
        self.shape = (spec.parameters, spec.parameters)
        self.dtype = np.dtype(jax.eval_shape(lambda: product.flat(data.variables)[0]).dtype)
        self.key = data.key

    def __matmul__(self, vector: Any) -> Any:
        """The product with a vector, columns, or a tree; raises InputError for other shapes."""
        if hasattr(vector, "shape"):
            return super().__matmul__(vector)
        return self.to_tree(self @ self.to_vector(vector))

    def multiply(self, vector: Array) -> Array:
        """The product with a vector (parameters,)."""
        return apply(self.data, vector, product=self.product)

    @property
    def _allowed(self) -> str:
        return f"{super()._allowed}, or a tree like the parameters"

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

    def diagonal(self, key: Array | None = None, *, probes: int = 32) -> Array:
        """The diagonal, (parameters,): exact for matrices of per-example gradients.

        Else an estimate by `probes` products with random signs, as in `LinearOperator`.
        """
        if self.product.kind in PER_EXAMPLE:
            return exact_diagonal(self.data, product=self.product)
        return super().diagonal(key, probes=probes)

    def __repr__(self) -> str:
        """Name and size."""
        rows = f"{self.shape[0]:,}"
        return f"{type(self).__name__}: {self.spec.name}, {rows} x {rows}, {self.spec.data_text}"


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
) -> ParameterOperator:
    """The Hessian of the mean loss over the batches, as a linear operator.

    mode: in training, batch statistics are recomputed inside the loss and contribute curvature;
    dropout has one mask per batch. layers: the diagonal block of these modules' parameters.
    Pass the same loss object again: a new lambda recompiles.
    Raises InputError for inputs or layers that do not fit.
    Cost of a product: about two forward and two backward passes, by forward-over-reverse
    differentiation; memory: activations of one batch, twice. Source: Pearlmutter 1994.
    """
    given = {"loss": loss, "mode": mode, "layers": layers, "key": key}
    return ParameterOperator(*make_matrix(model, variables, batch, operator="hessian", **given))


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
) -> ParameterOperator:
    """The Gauss-Newton matrix J^T H J of the mean loss, as a linear operator.

    J is the Jacobian of the network's outputs, H the Hessian of the loss with respect to them:
    the Hessian without the network's own curvature. It is positive semi-definite for a convex
    loss, and the Fisher matrix for softmax cross-entropy. Arguments, errors and cost as for
    `hessian`. Source: Schraudolph 2002; Martens 2020 (arXiv:1412.1193), section 8.
    """
    given = {"loss": loss, "mode": mode, "layers": layers, "key": key}
    return ParameterOperator(
        *make_matrix(model, variables, batch, operator="gauss_newton", **given)
    )


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
) -> ParameterOperator:
    """The Fisher matrix of a classifier by softmax cross-entropy, as a linear operator.

    The mean over examples of the covariance of the gradient of log p(y), with y from the network's
    own distribution. samples=None: exact, as the Gauss-Newton matrix; a number: from so many
    sampled labels per example, whose mean over keys it is.
    Other arguments and errors as for `hessian`.
    Source: Martens 2020 (arXiv:1412.1193), sections 5 and 9.2.
    """
    given = {"loss": cross_entropy, "mode": mode, "layers": layers, "key": key}
    matrix = make_matrix(model, variables, batch, operator="fisher", samples=samples, **given)
    return ParameterOperator(*matrix)


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
) -> ParameterOperator:
    """The mean of g g^T over the gradients g of the single examples, as a linear operator.

    With the labels of the data; it is not the Fisher matrix. Raises InputError also for training
    mode with batch statistics, in which an example has no gradient of its own. Other arguments as
    for `hessian`. Cost of a product: about two forward and two backward passes.
    Source: Kunstner, Balles and Hennig 2019 (arXiv:1905.12558).
    """
    given = {"loss": loss, "mode": mode, "layers": layers, "key": key}
    matrix = make_matrix(model, variables, batch, operator="empirical_fisher", **given)
    return ParameterOperator(*matrix)


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
) -> ParameterOperator:
    """The unbiased covariance of the gradients of single examples, as a linear operator.

    Its trace is that of the noise scale. Arguments, errors and cost as for `empirical_fisher`; a
    product also takes one gradient. Raises InputError for a single example.
    """
    given = {"loss": loss, "mode": mode, "layers": layers, "key": key}
    return ParameterOperator(*make_matrix(model, variables, batch, operator="covariance", **given))


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
