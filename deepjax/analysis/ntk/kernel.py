"""The neural tangent kernel of a network.

Jacot, Gabriel and Hongler, "Neural tangent kernel", 2018 (arXiv:1806.07572). Novak, Sohl-Dickstein
and Schoenholz, "Fast finite width neural tangent kernel", 2022 (arXiv:2206.08720).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from deepjax.analysis.core.instrument import instrument
from deepjax.analysis.core.layers import LayerNames, Layers, parameter_layers, selected_leaves
from deepjax.analysis.core.mode import EVAL, Mode
from deepjax.analysis.core.options import Progress
from deepjax.analysis.core.params import (
    real_count,
    real_leaves,
    replace_leaves,
    restored,
    sum_dtype,
    widened,
)
from deepjax.analysis.network.adapter import Inputs
from deepjax.analysis.network.batch import Batches
from deepjax.analysis.network.module import Model, apply_module
from deepjax.analysis.ntk.own_outputs import prepare_own_outputs, single_examples
from deepjax.analysis.ntk.tangent_kernel import Output, TangentKernel
from deepjax.backend.conv_layouts import canonicalize_conv_layouts
from deepjax.errors import require


@instrument
def ntk(
    model: Model,
    variables: Any,
    batch: Batches,
    other: Batches | None = None,
    *,
    mode: Mode = EVAL,
    layers: Layers = None,
    key: Array | None = None,
    chunk: int = 16,
    progress: Progress = None,
    output: Output = "mean",
) -> TangentKernel:
    """The empirical neural tangent kernel of the examples of a batch, or between two batches.

    batch, other: also the inputs alone; of a list of batches all examples together. Scalars, such
    as a random key, are shared by all examples. The network returns k numbers per example. output:
    "full" is the inner product of the gradients of output a at example i and output b at example
    j, (n, m, k, k); "trace" its sum over a = b, (n, m); "mean" that divided by k. layers: the
    gradients with respect to these modules' parameters alone. Random streams start from `key` for
    every example: in TRAIN all have the same dropout mask.
    Raises InputError for inputs that do not fit, in training with batch statistics, under which an
    example has no output of its own, and unless the network returns one array with a row per
    example. Compiled once for each network, shape and chunk.
    Cost: k backward passes for each example of a pair of chunks; (n / chunk) (m / chunk) pairs,
    half of them without `other`. Memory 2 x chunk x k x parameters: with many outputs use chunk=1.
    Source: Jacot et al. 2018, section 4; Novak et al. 2022, section 3.1 (contraction of Jacobians);
    "mean" as in its library.
    """
    require(output in ("mean", "trace", "full"), "output", output, "'mean', 'trace', 'full'")
    require(
        isinstance(chunk, int) and chunk >= 1, "chunk", chunk, "a number of examples, 1 or more"
    )
    sides = [batch] if other is None else [batch, other]
    prepared = [prepare_own_outputs(model, variables, side, mode=mode, key=key) for side in sides]
    task = prepared[0][0]
    outputs = min(count for _, count in prepared)
    names = parameter_layers(layers, task.variables["params"])
    examples = [single_examples(each) for each, _ in prepared]
    sizes = [jax.tree.leaves(each)[0].shape[0] for each in examples]
    parts = [_split(each, min(chunk, size)) for each, size in zip(examples, sizes, strict=True)]
    options = {"model": task.network, "train": mode.train, "layers": names}

    def jacobian(part: Inputs) -> list[Array]:
        return _jacobian(task.variables, part, task.key, **options)

    grid = _blocks(jacobian, parts[0], parts[-1], other is None, output, progress)
    matrix = np.concatenate([np.concatenate(row, axis=1) for row in grid])
    leaves = selected_leaves(task.variables["params"], names).values()
    return TangentKernel(
        matrix[: sizes[0], : sizes[-1]],
        output,
        outputs,
        parameters=sum(map(real_count, leaves)),
        layers=names,
        symmetric=other is None,
        eps=float(jnp.finfo(sum_dtype(*leaves)).eps),
        mode=mode,
        mode_text=task.mode_text,
        has_batch_norm=task.has_batch_norm,
    )


def _blocks(
    jacobian: Callable[[Inputs], list[Array]],
    rows: Sequence[Inputs],
    columns: Sequence[Inputs],
    symmetric: bool,
    output: Output,
    progress: Progress,
) -> list[list[Any]]:
    """The block of each pair of chunks; if symmetric the lower triangle from the upper one."""
    grid: list[list[Any]] = [[None] * len(columns) for _ in rows]
    total = len(rows) * (len(rows) + 1) // 2 if symmetric else len(rows) * len(columns)
    done = 0
    for i, part in enumerate(rows):
        left = jacobian(part)
        for j in range(i if symmetric else 0, len(columns)):
            right = left if symmetric and j == i else jacobian(columns[j])
            grid[i][j] = np.asarray(_contract(left, right, output=output), np.float64)
            if symmetric and i != j:
                grid[j][i] = _transposed(grid[i][j])
            done += 1
            if progress:
                progress(done, total)
    return grid


def _transposed(block: np.ndarray) -> np.ndarray:
    """With rows and columns exchanged, and with the outputs of both where it has these axes."""
    return block.T if block.ndim == 2 else block.transpose(1, 0, 3, 2)


def _split(examples: Inputs, size: int) -> list[Inputs]:
    """Chunks of `size` examples; the last one is padded by repeating its last example."""
    count = jax.tree.leaves(examples)[0].shape[0]
    indices = [
        np.minimum(np.arange(start, start + size), count - 1) for start in range(0, count, size)
    ]
    return [jax.tree.map(lambda leaf, at=each: leaf[at], examples) for each in indices]


@functools.partial(jax.jit, static_argnames=("model", "train", "layers"))
@canonicalize_conv_layouts
def _jacobian(
    variables: Any,
    examples: Inputs,
    key: Array,
    *,
    model: Model,
    train: bool,
    layers: LayerNames,
) -> list[Array]:
    """(examples, outputs, entries) for each array of parameters."""
    params = variables["params"]
    block = selected_leaves(params, layers)

    def one(example: Inputs) -> Any:
        def outputs(view: Any) -> Array:
            given = {**variables, "params": replace_leaves(params, restored(view, block))}
            return widened(apply_module(model, given, (example, None), train, key)[0]).ravel()

        return jax.jacrev(outputs)(real_leaves(block))

    # The default precision of accelerators rounds factors to 8 or 10 bits.
    with jax.default_matmul_precision("highest"):
        found = jax.tree.leaves(jax.vmap(one)(examples))
    return [leaf.reshape(*leaf.shape[:2], -1) for leaf in found]


@functools.partial(jax.jit, static_argnames=("output",))
def _contract(left: list[Array], right: list[Array], *, output: Output) -> Array:
    form = "iap,jbp->ijab" if output == "full" else "iap,jap->ij"
    total = functools.reduce(
        jnp.add,
        [jnp.einsum(form, a, b, precision="highest") for a, b in zip(left, right, strict=True)],
    )
    return total / left[0].shape[1] if output == "mean" else total
