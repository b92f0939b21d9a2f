"""The Hessian and the Gauss-Newton matrix of a loss: their products with vectors, and their traces.

Neither matrix is ever formed. Pearlmutter, "Fast exact multiplication by the Hessian", 1994; Schraudolph, "Fast curvature
matrix-vector products for second-order gradient descent", 2002; Yao, Gholami, Keutzer and Mahoney, "PyHessian: neural networks
through the lens of the Hessian", 2020 (arXiv:1912.07145). Eigenvalues are in `spectrum`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array, lax
from jax.flatten_util import ravel_pytree

from deepjax.analysis.core.batch import Batches, stack
from deepjax.analysis.core.module import (
    Batch,
    Loss,
    base_key,
    cross_entropy,
    entry,
    has_batch_norm,
    run,
    validate_inputs,
)
from deepjax.analysis.core.params import (
    Path,
    by_path,
    check_like,
    filled,
    from_real,
    is_within,
    modules_of,
    part_of,
    path_string,
    real_count,
    real_leaves,
    real_pairs,
    restored,
    sum_dtype,
    widened,
)
from deepjax.backend.conv_layouts import canonicalize_conv_layouts
from deepjax.errors import require, unknown_name_error

Kind = Literal["hessian", "gauss_newton"]
Statistics = Literal["running", "batch"]
Layers = str | tuple[str, ...] | None
"""None: all parameters; else those of the modules at these paths, with the others held fixed: a diagonal block of the matrix."""
Progress = Callable[[int, int], None] | None
"""Called with (products done, products in all)."""


@dataclasses.dataclass(frozen=True)
class MatrixSpec:
    """What matrix the numbers are of."""

    operator: Kind
    bn: Statistics
    """"running": evaluation, frozen statistics; "batch": training, statistics a function of the parameters, and so curved too."""
    normalised: bool
    """Whether the network keeps batch statistics at all; without them `bn` decides on dropout alone."""
    layers: tuple[str, ...] | None
    """None: all parameters."""
    parameters: int
    """Rows of the matrix: real numbers, two for a complex parameter."""
    examples: int
    batches: int

    @property
    def name(self) -> str:
        """For a figure's title."""
        name = "Hessian" if self.operator == "hessian" else "Gauss-Newton matrix"
        return name if self.layers is None else f"{name} of {', '.join(self.layers)}"


@dataclasses.dataclass(frozen=True)
class Operator:
    """The matrix as what it does to a vector; hashable, so that it is a static argument of what is compiled."""

    model: nn.Module
    loss: Loss
    kind: Kind
    train: bool
    layers: tuple[str, ...] | None

    def __call__(self, data: Any, vector: Array) -> Array:
        """The product with a vector (parameters,). data: (variables, batches stacked along a leading axis)."""
        # On TPUs and recent GPUs the default rounds factors to 8 or 10 bits, and the matrix would not be symmetric.
        with jax.default_matmul_precision("highest"):
            return self._mean(data, lambda *part: self._product(data[0], vector, *part), vector)

    def gradient(self, data: Any) -> Array:
        """Of the loss by the same parameters, (parameters,)."""
        with jax.default_matmul_precision("highest"):
            flat, _ = self.flat(data[0])
            return self._mean(
                data, lambda *part: jax.grad(self._functions(data[0], *part)[1])(flat), flat
            )

    def flat(self, variables: Any) -> tuple[Array, Callable[[Array], dict[Path, Array]]]:
        """The parameters as one vector of real numbers, and the way back to `real_leaves` by path."""
        return ravel_pytree(real_leaves(self.block(variables)))

    def block(self, variables: Any) -> dict[Path, Array]:
        """The leaves that are not held fixed, by path."""
        leaves = by_path(variables["params"])
        return (
            leaves
            if self.layers is None
            else {path: leaf for path, leaf in leaves.items() if is_within(path, self.layers)}
        )

    def _mean(self, data: Any, function: Callable[[Array, Batch], Array], like: Array) -> Array:
        """Mean over the batches, one at a time: a gradient of the mean loss would keep every batch's activations."""
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
        """What the network returns, and the loss, as functions of the flat parameters."""
        old, (_, leaves) = self.block(variables), self.flat(variables)
        rngs = base_key(self.model, index)

        def outputs(flat: Array) -> Any:
            params = filled(variables["params"], restored(leaves(flat), old))
            return run(self.model, {**variables, "params": params}, batch, self.train, rngs)[0]

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
    """`product(data, vector)`, compiled once for a network, loss, choice of parameters and shape."""
    return product(data, vector)


def hvp(
    model: nn.Module,
    variables: Any,
    batch: Batches,
    vector: Any,
    *,
    loss: Loss = cross_entropy,
    bn: Statistics = "running",
    layers: Layers = None,
) -> Any:
    """The Hessian of the loss times a vector, by forward over reverse differentiation.

    vector: a tree like the parameters; with `layers` only their part. Returns such a tree, float32 (float64 where one of them is),
    complex where they are, as `params` says: pairs of real numbers. bn="running" is the network
    in evaluation; "batch" in training, where batch statistics are recomputed inside the loss and dropout's masks are fixed
    (key 0, one mask a batch). Pass the same loss again, for a new lambda compiles anew.
    Raises InputError for inputs, layers or a vector that do not fit. Cost: about two forward and two backward passes over the
    data; memory of one batch's activations twice. Source: Pearlmutter 1994.
    """
    return _product(model, variables, batch, vector, "hessian", layers, bn, loss)


def gnvp(
    model: nn.Module,
    variables: Any,
    batch: Batches,
    vector: Any,
    *,
    loss: Loss = cross_entropy,
    bn: Statistics = "running",
    layers: Layers = None,
) -> Any:
    """The Gauss-Newton matrix J^T H J times a vector: J is of what the network returns, H the loss's Hessian with respect to it.

    It is the Hessian without the network's own curvature, positive semi-definite for a convex loss, and for softmax cross-entropy
    the Fisher matrix. Arguments, errors and cost as of `hvp`. Source: Schraudolph 2002; Martens 2020 (arXiv:1412.1193), section 8.
    """
    return _product(model, variables, batch, vector, "gauss_newton", layers, bn, loss)


@dataclasses.dataclass(frozen=True, eq=False)
class HessianTrace:
    """The trace of a matrix: the sum of its eigenvalues, estimated."""

    matrix: MatrixSpec
    trace: float
    error: float
    """Standard error; 0 for a diagonal matrix, NaN for one probe."""
    estimates: tuple[float, ...]
    """One a probe."""

    @property
    def mean_eigenvalue(self) -> float:
        """The trace / parameters."""
        return self.trace / self.matrix.parameters

    def rows(self) -> list[dict[str, Any]]:
        """A plain dict a probe: its own estimate, and the trace and standard error from all probes so far."""
        found = []
        for count, estimate in enumerate(self.estimates, 1):
            trace, error = _mean_and_error(self.estimates[:count])
            found.append({"probe": count, "estimate": estimate, "trace": trace, "error": error})
        return found

    def plot(self, ax: Any = None) -> Any:
        """The trace from all probes so far with its standard error; returns the matplotlib Axes."""
        from deepjax.analysis.curvature.curvature_figures import draw_trace

        return draw_trace(self, ax)


def hessian_trace(
    model: nn.Module,
    variables: Any,
    batch: Batches,
    *,
    probes: int = 32,
    operator: Kind = "hessian",
    layers: Layers = None,
    bn: Statistics = "running",
    loss: Loss = cross_entropy,
    seed: int = 0,
    progress: Progress = None,
) -> HessianTrace:
    """The trace of the Hessian or Gauss-Newton matrix: mean of v^T A v over probes v of random signs, without bias.

    The variance of one estimate is twice the sum of the squared entries off the diagonal. Other arguments as of `hvp`.
    Raises InputError as `hvp`, for no probes, and where the curvature is not finite.
    Cost: `probes` products (see `hvp`). Source: Hutchinson 1990; Yao et al. 2020, algorithm 2.
    """
    require(isinstance(probes, int) and probes >= 1, "probes", probes, "1 or more")
    product, data, matrix = prepare(model, variables, batch, operator, layers, bn, loss)
    estimates: list[float] = []
    for probe in range(probes):
        signs = rademacher(seed, probe, product.flat(data[0])[0])
        estimates.append(
            check_finite(jnp.vdot(signs, apply(data, signs, product=product), precision="highest"))
        )
        if progress:
            progress(probe + 1, probes)
    return HessianTrace(matrix, *_mean_and_error(tuple(estimates)), tuple(estimates))


def prepare(
    model: nn.Module,
    variables: Any,
    batch: Batches,
    operator: Kind,
    layers: Layers,
    bn: Statistics,
    loss: Loss,
) -> tuple[Operator, Any, MatrixSpec]:
    """The operator, the data that it takes, and what it is; raises InputError for what does not fit before anything is computed."""
    model, variables = entry(model, variables)
    require(
        operator in ("hessian", "gauss_newton"), "operator", operator, "'hessian', 'gauss_newton'"
    )
    require(bn in ("running", "batch"), "bn", bn, "'running', 'batch'")
    data = stack(batch)
    validate_inputs(model, variables, data.first, loss, bn == "batch", every=data.stacked)
    layers = _known((layers,) if isinstance(layers, str) else layers, variables["params"])
    product = Operator(model, loss, operator, bn == "batch", layers)
    parameters = sum(map(real_count, product.block(variables).values()))
    matrix = MatrixSpec(
        operator, bn, has_batch_norm(variables), layers, parameters, data.examples, data.batches
    )
    return product, (variables, data.stacked), matrix


def to_tree(product: Operator, variables: Any, vector: Array) -> dict[str, Any]:
    """A vector of the matrix as a tree like the parameters; of some layers, like their part of it."""
    leaves = product.block(variables)
    return part_of(variables["params"], from_real(product.flat(variables)[1](vector), leaves))


def check_finite(value: Array) -> float:
    """The number, which the curvature must have."""
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
    # jax.random.rademacher, but the same signs under jax_enable_x64, where it draws in float64.
    return jnp.where(jax.random.bernoulli(key, jnp.float32(0.5), like.shape), 1, -1).astype(
        like.dtype
    )


def _product(
    model: nn.Module,
    variables: Any,
    batch: Batches,
    vector: Any,
    operator: Kind,
    layers: Layers,
    bn: Statistics,
    loss: Loss,
) -> Any:
    product, data, _ = prepare(model, variables, batch, operator, layers, bn, loss)
    variables = data[0]
    leaves = product.block(variables)
    given = check_like("vector", vector, part_of(variables["params"], leaves))
    dtype = sum_dtype(*leaves.values())
    flat, _ = ravel_pytree({path: real_pairs(leaf).astype(dtype) for path, leaf in given.items()})
    return to_tree(product, variables, apply(data, flat, product=product))


def _known(layers: tuple[str, ...] | None, params: Any) -> tuple[str, ...] | None:
    """The layers, when there are some and the network has all of them."""
    if layers is None:
        return None
    require(len(layers) > 0, "layers", layers, "None, or a path of a module, or several")
    leaves = by_path(params)
    modules, names = modules_of(leaves), {path_string(path) for path in leaves}
    for layer in layers:
        if layer not in modules and layer not in names:
            raise unknown_name_error("layer", layer, modules or names)
    return tuple(layers)


def _mean_and_error(estimates: tuple[float, ...]) -> tuple[float, float]:
    values = np.array(estimates)
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(values.mean()), float(error)
