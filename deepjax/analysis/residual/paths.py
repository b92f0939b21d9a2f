"""Path lengths: how many residual branches the gradient of a residual network passes through.

Veit, Wilber and Belongie, "Residual networks behave like ensembles of relatively shallow networks",
2016 (arXiv:1605.06431), section 4.3. With n residual sums there are 2^n paths from the output to
the input, each of which takes the shortcut or the branch at every sum; whatever a shortcut
computes, such as a projection, belongs to the shortcut.
"""

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from deepjax.analysis.core.instrument import instrument
from deepjax.analysis.core.layers import Layers, matching_layers
from deepjax.analysis.core.mode import EVAL, Mode
from deepjax.analysis.core.options import Progress
from deepjax.analysis.network.batch import Batches
from deepjax.analysis.network.inputs import floats_of, inputs_of, with_floats
from deepjax.analysis.network.module import (
    Batch,
    Loss,
    Model,
    apply_module,
    batch_key,
    cross_entropy,
)
from deepjax.analysis.network.taps import Site, require_layers
from deepjax.analysis.network.task import Task, make_task
from deepjax.analysis.residual.gates import (
    gate_names,
    map_gates,
    residual_sites,
    route_gradient,
    sample_subsets,
    subset_generator,
    subset_masks,
)
from deepjax.analysis.residual.path_report import PathLengths, length_rows
from deepjax.backend.conv_layouts import canonicalize_conv_layouts
from deepjax.errors import require


@instrument
def path_lengths(
    model: Model,
    variables: Any,
    batch: Batches,
    *,
    loss: Loss = cross_entropy,
    mode: Mode = EVAL,
    key: Array | None = None,
    chunk: int = 8,
    progress: Progress = None,
    samples: int = 16,
) -> PathLengths:
    """How much of the gradient takes paths of each length: number of paths x gradient of one.

    batch: with inputs of floats; of several batches the gradient is that of the mean loss with
    respect to the inputs of all. For each length k, `samples`
    random sets of k sums are taken (all sets if there are no more); at these the backward pass goes
    through the branch only, at all others through the shortcut only, and the forward pass is the
    network's own. The gradients of all 2^n paths add up to the full gradient, as the backward pass
    is linear. chunk: paths per forward pass.
    Raises InputError for a network without residual sums, sums inside nn.scan, inputs without
    floats, a function, which has no layers, and if no path carries any gradient.
    Cost: at most (n + 1) x samples backward passes, and a forward pass for each `chunk` of them,
    compiled once per network and shape; memory of one forward and `chunk` backward passes.
    Source: Veit et al. 2016, section 4.3.
    """
    task, gated = _prepared(model, variables, batch, loss, mode, key, "path_lengths")
    for name, value in {"samples": samples, "chunk": chunk}.items():
        require(isinstance(value, int) and value >= 1, name, value, "1 or more")
    names = gate_names(gated)
    n = len(names)
    rng = subset_generator(task.key)
    subsets = [sample_subsets(n, length, samples, rng) for length in range(n + 1)]
    branch = subset_masks(itertools.chain(*subsets), n)
    # The first row opens every gate: the full gradient.
    passes = np.concatenate([np.ones((1, n, 2), bool), np.stack([~branch, branch], axis=-1)])

    options = _options(task, loss, gated)

    def path_norms(passes: np.ndarray) -> np.ndarray:
        norms = [_path_norms(*given, passes, **options) for given in _each_batch(task)]
        # Of the gradient of the mean loss with respect to the inputs of all batches.
        squares = np.square(np.asarray(jax.device_get(norms), np.float64))
        return np.sqrt(squares.sum(axis=0)) / len(norms)

    norms = map_gates(path_norms, passes, chunk, progress)
    by_length = np.split(norms[1:], np.cumsum([len(group) for group in subsets])[:-1])
    lengths = length_rows(by_length)
    return PathLengths(names, float(norms[0]), lengths, mode, task.mode_text, task.data_text)


@instrument
def path_gradient(
    model: Model,
    variables: Any,
    batch: Batches,
    branches: Layers,
    *,
    loss: Loss = cross_entropy,
    mode: Mode = EVAL,
    key: Array | None = None,
) -> tuple[Array, ...]:
    """The loss's gradient along one path: the branch at the given sums, else the shortcut.

    branches: paths or patterns; () for none. Returns an array for each input of floats, of its
    shape; over all 2^n paths they add up to the full gradient. Of several batches the arrays are
    joined along the first axis, and the gradient is that of the mean loss. Raises InputError as
    `path_lengths`, and for an unknown sum.
    Cost: one forward and one backward pass. Source: Veit et al. 2016, section 4.3.
    """
    task, gated = _prepared(model, variables, batch, loss, mode, key, "path_gradient")
    names, count = gate_names(gated), task.data.batches
    chosen = set() if branches in ((), []) else matching_layers(branches, names)
    branch = np.isin(names, list(chosen))
    passes = np.stack([~branch, branch], axis=-1)
    found = [
        _path_gradient(*given, passes, **_options(task, loss, gated)) for given in _each_batch(task)
    ]
    if count == 1:
        return found[0]
    joined = (jnp.concatenate(list(map(jnp.atleast_1d, each))) for each in zip(*found, strict=True))
    return tuple(each / count for each in joined)


def _each_batch(task: Task) -> Iterator[tuple[Any, Batch, Array]]:
    """(variables, batch, its key)."""
    for index in range(task.data.batches):
        one = jax.tree.map(lambda leaf, i=index: leaf[i], task.data.stacked)
        yield task.variables, one, batch_key(task.key, index, task.data.batches)


def _options(task: Task, loss: Loss, gated: tuple[Site, ...]) -> dict[str, Any]:
    return {"model": task.network, "loss": loss, "train": task.mode.train, "gated": gated}


def _prepared(
    model: Model,
    variables: Any,
    batch: Batches,
    loss: Loss,
    mode: Mode,
    key: Array | None,
    taker: str,
) -> tuple[Task, tuple[Site, ...]]:
    """(the task, the residual sums); raises InputError where there are no gradients."""
    task = make_task(model, variables, batch, loss=loss, mode=mode, key=key)
    require_layers(task.network, taker)
    first = task.data.first
    gated = residual_sites(task.network, task.variables, first, loss, mode.train)
    inputs = inputs_of(task.network, first)
    dtypes = ", ".join(str(jnp.result_type(each)) for each in jax.tree.leaves(inputs))
    allowed = "inputs of floats, which have gradients"
    require(len(floats_of(inputs)) > 0, "batch", f"inputs of {dtypes}", allowed)
    return task, gated


@functools.partial(jax.jit, static_argnames=("model", "loss", "train", "gated"))
@canonicalize_conv_layouts
def _path_norms(
    variables: Any,
    batch: Batch,
    key: Array,
    passes: Array,
    *,
    model: Model,
    loss: Loss,
    train: bool,
    gated: tuple[Site, ...],
) -> Array:
    """passes: (paths, sums, 2) booleans, as for `route_gradient` -> (paths,) norms."""

    def norm(passes: Array) -> Array:
        return _norm(_gradient(model, variables, batch, key, passes, loss, train, gated))

    return jax.vmap(norm)(passes)


def _norm(gradients: tuple[Array, ...]) -> Array:
    flat = jnp.concatenate([jnp.ravel(gradient).astype(jnp.float32) for gradient in gradients])
    # Long paths carry 1e-25 and less, whose square underflows in float32.
    largest = jnp.max(jnp.abs(flat))
    return largest * jnp.linalg.norm(flat / jnp.where(largest > 0, largest, 1))


@functools.partial(jax.jit, static_argnames=("model", "loss", "train", "gated"))
@canonicalize_conv_layouts
def _path_gradient(
    variables: Any,
    batch: Batch,
    key: Array,
    passes: Array,
    *,
    model: Model,
    loss: Loss,
    train: bool,
    gated: tuple[Site, ...],
) -> tuple[Array, ...]:
    return _gradient(model, variables, batch, key, passes, loss, train, gated)


def _gradient(
    model: Model,
    variables: Any,
    batch: Batch,
    key: Array,
    passes: Array,
    loss: Loss,
    train: bool,
    gated: tuple[Site, ...],
) -> tuple[Array, ...]:
    """With respect to the inputs that are floats. passes: (sums, 2)."""
    inputs = inputs_of(model, batch)

    def value(floats: list[Array]) -> Array:
        given = with_floats(inputs, floats)
        with route_gradient(gated, passes):
            outputs, _ = apply_module(model, variables, (given, None), train, key)
        # What the loss itself reads from the inputs is on no path: it gets the original batch.
        return loss(outputs, batch)

    return tuple(jax.grad(value)(floats_of(inputs)))
