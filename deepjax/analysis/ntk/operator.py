"""The neural tangent kernel as a linear operator: products without its matrix."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree

from deepjax.analysis.core.instrument import instrument
from deepjax.analysis.core.layers import LayerNames, Layers, parameter_layers, selected_leaves
from deepjax.analysis.core.linear_operator import LinearOperator
from deepjax.analysis.core.mode import EVAL, Mode
from deepjax.analysis.core.params import real_leaves, replace_leaves, restored, widened
from deepjax.analysis.network.adapter import Inputs
from deepjax.analysis.network.batch import Batches
from deepjax.analysis.network.module import Model, apply_module
from deepjax.analysis.network.network import Network
from deepjax.analysis.ntk.own_outputs import prepare_own_outputs, single_examples
from deepjax.backend.conv_layouts import canonicalize_conv_layouts
from deepjax.errors import require


@dataclasses.dataclass(frozen=True)
class OutputsOfExamples:
    """A network's outputs as a function of its parameters; hashable, a static argument of jit."""

    network: Network
    train: bool
    layers: LayerNames
    outputs: int
    """k: numbers per example."""

    def flat(self, variables: Any) -> tuple[Array, Any]:
        """(parameters as one vector of real numbers, its inverse)."""
        return ravel_pytree(real_leaves(selected_leaves(variables["params"], self.layers)))

    def of(self, variables: Any, key: Array, examples: Inputs) -> Any:
        """The function (parameters,) -> (examples, k)."""
        params = variables["params"]
        block, (_, leaves) = selected_leaves(params, self.layers), self.flat(variables)

        def outputs(flat: Array) -> Array:
            view = replace_leaves(params, restored(leaves(flat), block))
            given = {**variables, "params": view}

            def one(example: Inputs) -> Array:
                found, _ = apply_module(self.network, given, (example, None), self.train, key)
                return widened(found).ravel()

            return jax.vmap(one)(examples)

        return outputs


class KernelOperator(LinearOperator):
    """The neural tangent kernel of n examples with k outputs: (n k, n k).

    The outputs of an example are next to each other, as in `TangentKernel.flattened`. A product is
    a vector-Jacobian and a Jacobian-vector product; the diagonal is exact.
    """

    def __init__(
        self, function: OutputsOfExamples, variables: Any, chunks: Inputs, key: Array, examples: int
    ) -> None:
        self.function, self.variables, self.key = function, variables, key
        self.chunks = chunks
        """Inputs of single examples, (chunks, examples of a chunk, ...); the last is padded."""
        self.examples = examples
        size = examples * function.outputs
        self.shape = (size, size)
        self.dtype = np.dtype(jax.eval_shape(lambda: function.flat(variables)[0]).dtype)

    def multiply(self, vector: Array) -> Array:
        """The product with a vector (n k,)."""
        return _multiply(self.variables, self.chunks, self.key, vector, function=self.function)

    def diagonal(self, key: Array | None = None, *, probes: int = 32) -> Array:
        """The exact diagonal, (n k,): one backward pass for each output of each example."""
        found = _diagonal(self.variables, self.chunks, self.key, function=self.function)
        return found[: self.shape[0]]

    def __repr__(self) -> str:
        """Size, examples and outputs."""
        rows, k = f"{self.shape[0]:,}", self.function.outputs
        return f"KernelOperator: {rows} x {rows}, {self.examples:,} examples, {k} outputs"


@instrument
def ntk_operator(
    model: Model,
    variables: Any,
    batch: Batches,
    *,
    mode: Mode = EVAL,
    layers: Layers = None,
    key: Array | None = None,
    chunk: int = 16,
) -> KernelOperator:
    """The empirical neural tangent kernel of a batch as a linear operator, for many examples.

    The matrix is that of `ntk(..., output="full")`; arguments and errors are those of `ntk`.
    Cost of a product: two forward and two backward passes; memory: the activations of `chunk`
    examples, and a few times the parameters.
    Source: Jacot et al. 2018, section 4; Novak et al. 2022, section 3.2 (products without the
    matrix).
    """
    require(
        isinstance(chunk, int) and chunk >= 1, "chunk", chunk, "a number of examples, 1 or more"
    )
    task, outputs = prepare_own_outputs(model, variables, batch, mode=mode, key=key)
    examples = single_examples(task)
    count = jax.tree.leaves(examples)[0].shape[0]
    size = min(chunk, count)
    indices = np.minimum(np.arange(-(-count // size) * size), count - 1).reshape(-1, size)
    chunks = jax.tree.map(lambda leaf: leaf[indices], examples)
    names = parameter_layers(layers, task.variables["params"])
    function = OutputsOfExamples(task.network, mode.train, names, outputs)
    return KernelOperator(function, task.variables, chunks, task.key, count)


@functools.partial(jax.jit, static_argnames=("function",))
@canonicalize_conv_layouts
def _multiply(
    variables: Any, chunks: Inputs, key: Array, vector: Array, *, function: OutputsOfExamples
) -> Array:
    count, size = jax.tree.leaves(chunks)[0].shape[:2]
    # Padded examples have zeros, and so contribute nothing.
    padded = jnp.zeros(count * size * function.outputs, vector.dtype).at[: vector.size].set(vector)
    cotangents = padded.reshape(count, size, function.outputs)
    flat, _ = function.flat(variables)

    def pull_of(examples: Inputs) -> Any:
        outputs, pull = jax.vjp(function.of(variables, key, examples), flat)
        return outputs, lambda cotangent: pull(cotangent.astype(outputs.dtype))[0]

    def add(total: Array, part: Any) -> tuple[Array, None]:
        examples, cotangent = part
        return total + pull_of(examples)[1](cotangent), None

    def push(examples: Inputs) -> Array:
        outputs, pull = pull_of(examples)
        # J v as the transpose of u -> J^T u: jax.jvp refuses networks with a custom_vjp.
        return jax.vjp(pull, outputs)[1](tangent)[0]

    with jax.default_matmul_precision("highest"):
        tangent, _ = jax.lax.scan(add, jnp.zeros_like(flat), (chunks, cotangents))
        found = jax.lax.map(push, chunks)
    return found.ravel()[: vector.size].astype(vector.dtype)


@functools.partial(jax.jit, static_argnames=("function",))
@canonicalize_conv_layouts
def _diagonal(variables: Any, chunks: Inputs, key: Array, *, function: OutputsOfExamples) -> Array:
    flat, _ = function.flat(variables)

    def one(example: Inputs) -> Array:
        alone = jax.tree.map(lambda leaf: leaf[None], example)
        _, pull = jax.vjp(lambda flat: function.of(variables, key, alone)(flat)[0], flat)
        basis = jnp.eye(function.outputs, dtype=flat.dtype)
        return jax.lax.map(lambda row: jnp.sum(jnp.square(pull(row)[0])), basis)

    examples = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), chunks)
    with jax.default_matmul_precision("highest"):
        return jax.lax.map(one, examples).ravel()
