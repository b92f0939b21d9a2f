"""Products of the Hessian and the Gauss-Newton matrix of a loss with vectors; no matrix is formed.

Pearlmutter, "Fast exact multiplication by the Hessian", 1994; Schraudolph, "Fast curvature
matrix-vector products for second-order gradient descent", 2002.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax
from jax.flatten_util import ravel_pytree

from deepjax.analysis.core.batch import Batches, data_text, stack
from deepjax.analysis.core.module import (
    Batch,
    Loss,
    apply_module,
    base_key,
    cross_entropy,
    entry,
    has_batch_norm,
    validate_inputs,
)
from deepjax.analysis.core.options import BatchStatistics
from deepjax.analysis.core.params import (
    Path,
    by_path,
    check_like,
    from_real,
    is_within,
    module_names,
    path_string,
    real_count,
    real_leaves,
    real_pairs,
    replace_leaves,
    restored,
    subtree,
    sum_dtype,
    widened,
)
from deepjax.backend.conv_layouts import canonicalize_conv_layouts
from deepjax.errors import require, unknown_name_error

MatrixKind = Literal["hessian", "gauss_newton"]
Layers = str | tuple[str, ...] | None
"""Paths of modules: the matrix is the diagonal block of their parameters, with all others fixed.

None: all parameters.
"""
LONGEST_NAME = 48  # characters of a matrix's name in a figure's title


@dataclasses.dataclass(frozen=True)
class MatrixSpec:
    """Which matrix a result describes."""

    operator: MatrixKind
    bn: BatchStatistics
    """With "batch" the statistics are functions of the parameters and contribute curvature."""
    has_batch_norm: bool
    """Without batch statistics `bn` only switches dropout."""
    layers: tuple[str, ...] | None
    """None: all parameters."""
    parameters: int
    """Number of rows: real numbers, two for a complex parameter."""
    examples: int
    batches: int

    @property
    def name(self) -> str:
        """Hessian or Gauss-Newton matrix, and of which layers."""
        name = "Hessian" if self.operator == "hessian" else "Gauss-Newton matrix"
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
        return data_text(self.examples, self.bn, self.has_batch_norm)


@dataclasses.dataclass(frozen=True)
class Operator:
    """The matrix as a linear map; hashable, so that it can be a static argument of jit."""

    model: nn.Module
    loss: Loss
    kind: MatrixKind
    train: bool
    layers: tuple[str, ...] | None

    def __call__(self, data: Any, vector: Array) -> Array:
        """The product with a vector (parameters,). data: (variables, stacked batches)."""
        # The default precision of TPUs and recent GPUs rounds factors to 8 or 10 bits; the matrix
        # would not be symmetric.
        with jax.default_matmul_precision("highest"):
            return self._mean(data, lambda *part: self._product(data[0], vector, *part), vector)

    def gradient(self, data: Any) -> Array:
        """The gradient of the loss with respect to the same parameters, (parameters,)."""
        with jax.default_matmul_precision("highest"):
            flat, _ = self.flat(data[0])
            return self._mean(
                data, lambda *part: jax.grad(self._functions(data[0], *part)[1])(flat), flat
            )

    def flat(self, variables: Any) -> tuple[Array, Callable[[Array], dict[Path, Array]]]:
        """(parameters as one vector of real numbers, inverse: vector -> `real_leaves` by path)."""
        return ravel_pytree(real_leaves(self.block(variables)))

    def block(self, variables: Any) -> dict[Path, Array]:
        """The parameters that are not held fixed, by path."""
        leaves = by_path(variables["params"])
        if self.layers is None:
            return leaves
        return {path: leaf for path, leaf in leaves.items() if is_within(path, self.layers)}

    def _mean(self, data: Any, function: Callable[[Array, Batch], Array], like: Array) -> Array:
        """Mean over the batches, one at a time.

        Differentiating the mean loss instead would keep the activations of every batch.
        """
        count = jax.tree.leaves(data[1])[0].shape[0]

        def step(total: Array, part: Any) -> tuple[Array, None]:
            return total + function(*part), None

        summed = canonicalize_conv_layouts(
            lambda batches: lax.scan(step, jnp.zeros_like(like), (jnp.arange(count), batches))[0]
        )
        return summed(data[1]) / count

    def _functions(
        self, variables: Any, index: Array, batch: Batch
    ) -> tuple[Callable[[Array], Any], Callable[[Array], Array]]:
        """(network outputs, loss) as functions of the flat parameters."""
        old, (_, leaves) = self.block(variables), self.flat(variables)
        rngs = base_key(self.model, index)

        def outputs(flat: Array) -> Any:
            params = replace_leaves(variables["params"], restored(leaves(flat), old))
            return apply_module(
                self.model, {**variables, "params": params}, batch, self.train, rngs
            )[0]

        return outputs, lambda flat: widened(self.loss(outputs(flat), batch))

    def _product(self, variables: Any, vector: Array, index: Array, batch: Batch) -> Array:
        flat, _ = self.flat(variables)
        outputs, value = self._functions(variables, index, batch)
        if self.kind == "hessian":
            return jax.jvp(jax.grad(value), (flat,), (vector,))[1]
        found, pull = jax.vjp(outputs, flat)
        # J v as the transpose of u -> J^T u: jax.jvp refuses networks with a custom_vjp.
        (moved,) = jax.vjp(lambda cotangent: pull(cotangent)[0], found)[1](vector)
        curved = jax.jvp(jax.grad(lambda found: self.loss(found, batch)), (found,), (moved,))[1]
        return pull(curved)[0]


@functools.partial(jax.jit, static_argnames=("product",))
def apply(data: Any, vector: Array, *, product: Operator) -> Array:
    """`product(data, vector)`, compiled once for each network, loss, set of layers and shape."""
    return product(data, vector)


def hvp(
    model: nn.Module,
    variables: Any,
    batch: Batches,
    vector: Any,
    *,
    loss: Loss = cross_entropy,
    bn: BatchStatistics = "running",
    layers: Layers = None,
) -> Any:
    """Hessian-vector product of the loss, by forward-over-reverse differentiation.

    vector: a tree like the parameters, or with `layers` like their part. Returns such a tree,
    float32 (float64 if a parameter is), complex where the parameters are.
    bn: "running" evaluates in evaluation mode; "batch" in training mode, with batch statistics
    recomputed inside the loss and fixed dropout masks (key 0, one mask per batch).
    Pass the same loss object again: a new lambda compiles anew.
    Raises InputError for inputs, layers or a vector that do not fit.
    Cost: about two forward and two backward passes; memory: activations of one batch, twice.
    Source: Pearlmutter 1994.
    """
    return _product(model, variables, batch, vector, "hessian", layers, bn, loss)


def gnvp(
    model: nn.Module,
    variables: Any,
    batch: Batches,
    vector: Any,
    *,
    loss: Loss = cross_entropy,
    bn: BatchStatistics = "running",
    layers: Layers = None,
) -> Any:
    """Product of the Gauss-Newton matrix J^T H J with a vector.

    J is the Jacobian of the network's outputs, H the Hessian of the loss with respect to them:
    the Hessian without the network's own curvature. It is positive semi-definite for a convex
    loss, and the Fisher matrix for softmax cross-entropy. Arguments, errors and cost as for `hvp`.
    Source: Schraudolph 2002; Martens 2020 (arXiv:1412.1193), section 8.
    """
    return _product(model, variables, batch, vector, "gauss_newton", layers, bn, loss)


def make_operator(
    model: nn.Module,
    variables: Any,
    batch: Batches,
    operator: MatrixKind,
    layers: Layers,
    bn: BatchStatistics,
    loss: Loss,
) -> tuple[Operator, Any, MatrixSpec]:
    """(operator, its data, its description). Raises InputError before anything is computed."""
    model, variables = entry(model, variables)
    require(
        operator in ("hessian", "gauss_newton"), "operator", operator, "'hessian', 'gauss_newton'"
    )
    require(bn in ("running", "batch"), "bn", bn, "'running', 'batch'")
    data = stack(batch)
    validate_inputs(model, variables, data.first, loss, bn == "batch", every=data.stacked)
    layers = _validate_layers((layers,) if isinstance(layers, str) else layers, variables["params"])
    product = Operator(model, loss, operator, bn == "batch", layers)
    parameters = sum(map(real_count, product.block(variables).values()))
    matrix = MatrixSpec(
        operator, bn, has_batch_norm(variables), layers, parameters, data.examples, data.batches
    )
    return product, (variables, data.stacked), matrix


def to_tree(product: Operator, variables: Any, vector: Array) -> dict[str, Any]:
    """A vector (parameters,) as a tree like the operator's parameters."""
    leaves = product.block(variables)
    return subtree(variables["params"], from_real(product.flat(variables)[1](vector), leaves))


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


def rademacher(seed: int, probe: int, like: Array) -> Array:
    """Random signs of the shape and dtype of an array."""
    key = jax.random.fold_in(jax.random.key(seed), probe)
    # Not jax.random.rademacher, which under jax_enable_x64 samples in float64: other signs.
    return jnp.where(jax.random.bernoulli(key, jnp.float32(0.5), like.shape), 1, -1).astype(
        like.dtype
    )


def _product(
    model: nn.Module,
    variables: Any,
    batch: Batches,
    vector: Any,
    operator: MatrixKind,
    layers: Layers,
    bn: BatchStatistics,
    loss: Loss,
) -> Any:
    product, data, _ = make_operator(model, variables, batch, operator, layers, bn, loss)
    variables = data[0]
    leaves = product.block(variables)
    given = check_like("vector", vector, subtree(variables["params"], leaves))
    dtype = sum_dtype(*leaves.values())
    flat, _ = ravel_pytree({path: real_pairs(leaf).astype(dtype) for path, leaf in given.items()})
    return to_tree(product, variables, apply(data, flat, product=product))


def _validate_layers(layers: tuple[str, ...] | None, params: Any) -> tuple[str, ...] | None:
    """The layers; raises InputError for an empty tuple and for names that the network lacks."""
    if layers is None:
        return None
    require(len(layers) > 0, "layers", layers, "None, or a path of a module, or several")
    leaves = by_path(params)
    modules, names = module_names(leaves), {path_string(path) for path in leaves}
    for layer in layers:
        if layer not in modules and layer not in names:
            raise unknown_name_error("layer", layer, modules or names)
    return tuple(layers)
