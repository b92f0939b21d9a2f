"""Products of matrices of a loss with vectors, as pure functions; no matrix is formed.

Hessian: Pearlmutter, "Fast exact multiplication by the Hessian", 1994. Gauss-Newton: Schraudolph,
"Fast curvature matrix-vector products for second-order gradient descent", 2002. Fisher: Kunstner,
Balles and Hennig, "Limitations of the empirical Fisher approximation for natural gradient descent",
2019 (arXiv:1905.12558).
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from deepjax.analysis.core.layers import Layers, parameter_layers, selected_leaves
from deepjax.analysis.core.mode import Mode
from deepjax.analysis.core.params import (
    Path,
    from_real,
    real_count,
    real_leaves,
    replace_leaves,
    restored,
    subtree,
    widened,
)
from deepjax.analysis.curvature.sampled_labels import sample_labels
from deepjax.analysis.network.batch import (
    Batches,
    batch_size,
    data_text,
    mean_over_batches,
    single_example,
)
from deepjax.analysis.network.module import (
    Batch,
    Loss,
    Model,
    Network,
    apply_module,
    cross_entropy,
    validate_inputs,
)
from deepjax.analysis.network.task import make_task
from deepjax.backend.conv_layouts import canonicalize_conv_layouts
from deepjax.errors import InputError, require

MatrixKind = Literal["hessian", "gauss_newton", "fisher", "empirical_fisher", "covariance"]
NAMES: dict[str, str] = {
    "hessian": "Hessian",
    "gauss_newton": "Gauss-Newton matrix",
    "fisher": "Fisher matrix",
    "empirical_fisher": "Empirical Fisher matrix",
    "covariance": "Gradient covariance",
}
PER_EXAMPLE = ("empirical_fisher", "covariance")
LONGEST_NAME = 48  # characters of a matrix's name in a figure's title


class MatrixData(NamedTuple):
    """The arrays of a matrix."""

    variables: dict[str, Any]
    batches: Any
    """Stacked along a leading axis."""
    key: Array


@dataclasses.dataclass(frozen=True)
class MatrixSpec:
    """Which matrix a result describes."""

    operator: MatrixKind
    mode: Mode
    """In training the statistics are functions of the parameters and contribute curvature."""
    has_batch_norm: bool
    layers: tuple[str, ...] | None
    """Paths of modules: the matrix is the diagonal block of their parameters. None: all."""
    parameters: int
    """Number of rows: real numbers, two for a complex parameter."""
    examples: int | None
    """None where they are not along the first axis."""
    batches: int

    @property
    def name(self) -> str:
        """Hessian, Gauss-Newton matrix ..., and of which layers."""
        name = NAMES[self.operator]
        return name if self.layers is None else f"{name} of {', '.join(self.layers)}"

    @property
    def short_name(self) -> str:
        """The name, shortened to fit a figure's title."""
        if len(self.name) <= LONGEST_NAME:
            return self.name
        return f"{self.name[: LONGEST_NAME - 3]}..."

    @property
    def data_text(self) -> str:
        """Number of examples and kind of batch statistics, for a figure's title."""
        return data_text(self.examples, self.mode, self.has_batch_norm)


@dataclasses.dataclass(frozen=True)
class MatrixProduct:
    """A symmetric matrix as a linear map; hashable, so that it can be a static argument of jit."""

    network: Network
    loss: Loss
    kind: MatrixKind
    train: bool
    layers: tuple[str, ...] | None
    examples: int
    """In all batches; used by the matrices of per-example gradients."""

    def __call__(self, data: MatrixData, vector: Array) -> Array:
        """The product with a vector (parameters,)."""
        # The default precision of TPUs and recent GPUs rounds factors to 8 or 10 bits; the matrix
        # would not be symmetric.
        with jax.default_matmul_precision("highest"):
            if self.kind == "covariance":
                return self._covariance(data, vector)
            return mean_over_batches(
                lambda key, batch: self._products[self.kind](self, data, vector, key, batch),
                data.batches,
                data.key,
            )

    def gradient(self, data: MatrixData) -> Array:
        """The gradient of the loss with respect to the same parameters, (parameters,)."""
        flat, _ = self.flat(data.variables)
        with jax.default_matmul_precision("highest"):
            return mean_over_batches(
                lambda key, batch: jax.grad(self._functions(data.variables, key, batch)[1])(flat),
                data.batches,
                data.key,
            )

    def diagonal(self, data: MatrixData) -> Array:
        """The exact diagonal of a matrix of per-example gradients, (parameters,)."""
        flat, _ = self.flat(data.variables)

        def squares(key: Array, batch: Batch) -> Array:
            count = batch_size(batch)

            def add(total: Array, index: Array) -> tuple[Array, None]:
                one = jax.grad(lambda flat: self._loss(data, key, batch, index, flat))(flat)
                return total + jnp.square(one - mean) / count, None

            return jax.lax.scan(add, jnp.zeros_like(flat), jnp.arange(count))[0]

        with jax.default_matmul_precision("highest"):
            is_covariance = self.kind == "covariance"
            mean = self._mean_of_examples(data) if is_covariance else jnp.zeros_like(flat)
            found = mean_over_batches(squares, data.batches, data.key)
        return found * (self.examples / (self.examples - 1) if is_covariance else 1.0)

    def _covariance(self, data: MatrixData, vector: Array) -> Array:
        """The mean of (g - mean) (g - mean)^T v, unbiased.

        Centred before the sum: the mean of g g^T less that of the mean cancels where it is large.
        """
        mean = self._mean_of_examples(data)
        centre = jnp.vdot(mean, vector)
        product, rest = mean_over_batches(
            lambda key, batch: self._centred(data, vector, key, batch, centre),
            data.batches,
            data.key,
        )
        return (product - mean * rest) * (self.examples / (self.examples - 1))

    def _mean_of_examples(self, data: MatrixData) -> Array:
        """The mean of the examples' gradients: each has random streams of its own."""
        flat, _ = self.flat(data.variables)
        return mean_over_batches(
            lambda key, batch: jax.grad(
                lambda flat: jnp.mean(self._losses(data, key, batch, flat))
            )(flat),
            data.batches,
            data.key,
        )

    def flat(self, variables: Any) -> tuple[Array, Callable[[Array], dict[Path, Array]]]:
        """(parameters as one vector of real numbers, inverse: vector -> `real_leaves` by path)."""
        return ravel_pytree(real_leaves(self.block(variables)))

    def block(self, variables: Any) -> dict[Path, Array]:
        """The parameters that are not fixed, by path."""
        return selected_leaves(variables["params"], self.layers)

    def to_tree(self, variables: Any, vector: Array) -> Any:
        """A vector (parameters,) as a tree like the matrix's parameters."""
        view = self.flat(variables)[1](vector)
        leaves = from_real(view, self.block(variables))
        return subtree(variables["params"], leaves)

    def _functions(
        self, variables: Any, key: Array, batch: Batch
    ) -> tuple[Callable[[Array], Any], Callable[[Array], Array]]:
        """(network outputs, loss) as functions of the flat parameters."""
        old, (_, leaves) = self.block(variables), self.flat(variables)

        def outputs(flat: Array) -> Any:
            params = replace_leaves(variables["params"], restored(leaves(flat), old))
            given = {**variables, "params": params}
            return apply_module(self.network, given, batch, self.train, key)[0]

        return outputs, lambda flat: widened(self.loss(outputs(flat), batch))

    def _hessian(self, data: MatrixData, vector: Array, key: Array, batch: Batch) -> Array:
        flat, _ = self.flat(data.variables)
        _, value = self._functions(data.variables, key, batch)
        return jax.jvp(jax.grad(value), (flat,), (vector,))[1]

    def _gauss_newton(self, data: MatrixData, vector: Array, key: Array, batch: Batch) -> Array:
        flat, _ = self.flat(data.variables)
        outputs, _ = self._functions(data.variables, key, batch)
        found, pull, others = jax.vjp(lambda flat: _by_float(outputs(flat)), flat, has_aux=True)
        # J v as the transpose of u -> J^T u: jax.jvp refuses networks with a custom_vjp.
        (moved,) = jax.vjp(lambda cotangent: pull(cotangent)[0], found)[1](vector)
        slope = jax.grad(lambda found: self.loss(_joined(found, others), batch))
        curved = jax.jvp(slope, (found,), (moved,))[1]
        return pull(curved)[0]

    def _empirical(self, data: MatrixData, vector: Array, key: Array, batch: Batch) -> Array:
        """J^T J v / examples, where J are the gradients of the examples' losses."""
        return self._centred(data, vector, key, batch, 0.0)[0]

    def _centred(
        self, data: MatrixData, vector: Array, key: Array, batch: Batch, centre: Any
    ) -> tuple[Array, Array]:
        """(J^T c / examples, mean of c), with c = J v - centre."""
        flat, _ = self.flat(data.variables)
        losses, pull = jax.vjp(lambda flat: self._losses(data, key, batch, flat), flat)
        (moved,) = jax.vjp(lambda cotangent: pull(cotangent)[0], losses)[1](vector)
        centred = moved - centre
        return pull(centred)[0] / losses.shape[0], jnp.mean(centred)

    def _losses(self, data: MatrixData, key: Array, batch: Batch, flat: Array) -> Array:
        """(examples,): the loss of each example alone."""
        indices = jnp.arange(batch_size(batch))
        return jax.vmap(lambda index: self._loss(data, key, batch, index, flat))(indices)

    def _loss(self, data: MatrixData, key: Array, batch: Batch, index: Array, flat: Array) -> Array:
        """The loss of one example alone."""
        one, own = single_example(batch, index), jax.random.fold_in(key, index)
        return self._functions(data.variables, own, one)[1](flat)

    @property
    def _products(self) -> dict[str, Callable[..., Array]]:
        product = MatrixProduct
        return {
            "hessian": product._hessian,
            "gauss_newton": product._gauss_newton,
            "fisher": product._gauss_newton,  # equal for softmax cross-entropy
            "empirical_fisher": product._empirical,
        }


@functools.partial(jax.jit, static_argnames=("product",))
@canonicalize_conv_layouts
def apply(data: MatrixData, vector: Array, *, product: MatrixProduct) -> Array:
    """`product(data, vector)`, compiled once for each network, loss, set of layers and shape."""
    return product(data, vector)


@functools.partial(jax.jit, static_argnames=("product",))
@canonicalize_conv_layouts
def exact_diagonal(data: MatrixData, *, product: MatrixProduct) -> Array:
    """`product.diagonal(data)`, compiled as `apply` is."""
    return product.diagonal(data)


def make_matrix(
    model: Model,
    variables: Any,
    batch: Batches,
    *,
    operator: MatrixKind,
    loss: Loss,
    mode: Mode,
    layers: Layers,
    key: Array | None,
    samples: int | None = None,
) -> tuple[MatrixProduct, MatrixData, MatrixSpec]:
    """(product, its data, its description). Raises InputError before anything is computed.

    samples: of labels for each example, for a sampled Fisher matrix.
    """
    require(operator in NAMES, "operator", operator, ", ".join(map(repr, NAMES)))
    task = make_task(model, variables, batch, loss=loss, mode=mode, key=key)
    stacked, examples = task.data.stacked, task.data.examples
    if operator == "fisher":
        require(
            loss is cross_entropy,
            "loss",
            getattr(loss, "__name__", loss),
            "cross_entropy, whose Fisher matrix is known",
        )
    kind: MatrixKind = operator
    if samples is not None:
        kind, (stacked, examples) = "empirical_fisher", sample_labels(task, samples)
    if kind in PER_EXAMPLE:
        batch_size(task.data.first)
        if task.has_batch_norm and mode.train:
            raise InputError(
                f"mode is {mode!r}; allowed for a matrix of per-example gradients: EVAL, because "
                "under batch statistics an example has no gradient of its own"
            )
        require(
            kind != "covariance" or (examples or 0) >= 2,
            "batch",
            f"of {examples} example",
            "two examples or more, for a covariance",
        )
        one = single_example(task.data.first, 0)
        validate_inputs(task.network, task.variables, one, loss, mode.train)
    names = parameter_layers(layers, task.variables["params"])
    product = MatrixProduct(task.network, loss, kind, mode.train, names, examples or 0)
    parameters = sum(map(real_count, product.block(task.variables).values()))
    spec = MatrixSpec(
        operator,
        mode,
        task.has_batch_norm,
        names,
        parameters,
        task.data.examples,
        task.data.batches,
    )
    return product, MatrixData(task.variables, stacked, task.key), spec


def _by_float(outputs: Any) -> tuple[Any, Any]:
    """(the floats of the outputs, the others), each with None in place of the rest."""

    def where(wanted: bool) -> Any:
        return jax.tree.map(
            lambda leaf: leaf if jnp.issubdtype(leaf.dtype, jnp.inexact) == wanted else None,
            outputs,
        )

    return where(True), where(False)


def _joined(floats: Any, others: Any) -> Any:
    return jax.tree.map(
        lambda one, other: other if one is None else one,
        floats,
        others,
        is_leaf=lambda leaf: leaf is None,
    )


def check_finite(value: Array) -> float:
    """The value as a float; raises InputError where it is not finite."""
    number = float(value)
    require(
        math.isfinite(number),
        "curvature",
        number,
        "finite values; `first_nonfinite_layer` finds the layer",
    )
    return number
