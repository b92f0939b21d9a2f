"""Gradients of a network's output with respect to its inputs, example by example.

Batch statistics are a fixed scale and shift: through them every example would influence every
other's output.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx
from jax import Array

from deepjax.analysis.core.mode import Mode
from deepjax.analysis.network.adapter import Inputs
from deepjax.analysis.network.batch import Batches, batch_size
from deepjax.analysis.network.calls import intercept_network
from deepjax.analysis.network.inputs import floats_of, with_floats
from deepjax.analysis.network.layer import Layer, Method
from deepjax.analysis.network.module import (
    Batch,
    Model,
    apply_module,
    batch_key,
    inputs_of,
    mode_text,
    name_of,
    validate_inputs,
)
from deepjax.analysis.network.task import Task, make_task
from deepjax.backend.conv_layouts import canonicalize_conv_layouts
from deepjax.errors import InputError, require

Output = Callable[[Any], Array]
"""The network's output -> the scalar to differentiate: a sum over examples that do not interact."""


def prepare_input_gradients(
    model: Model, variables: Any, batch: Batches, *, mode: Mode, key: Array | None, output: Output
) -> Task:
    """The task; raises InputError where the inputs do not fit or have no gradient."""
    loss = _OfOutputs(output)
    task = make_task(model, variables, batch, loss=loss, mode=mode, key=key, what="output")
    if mode.train:  # the gradient is that of evaluation
        validate_inputs(task.network, task.variables, task.data.first, loss, False, what="output")
    inputs = inputs_of(task.network, task.data.first)
    batch_size(inputs)
    dtypes = ", ".join(str(jnp.result_type(leaf)) for leaf in jax.tree.leaves(inputs))
    require(len(_own(inputs)) > 0, "batch", f"of inputs {dtypes}", "floats (examples, ...)")
    return task


def input_gradients(task: Task, output: Output) -> np.ndarray:
    """(examples of all batches, entries of an example's floats), in float64."""
    found = []
    for index in range(task.data.batches):
        gradients = _gradients(
            task.variables,
            jax.tree.map(lambda leaf, i=index: leaf[i], task.data.stacked),
            batch_key(task.key, index, task.data.batches),
            model=task.network,
            output=output,
            recalibrated=task.mode.train and task.has_batch_norm,
        )
        found.append(gradients)
    return np.concatenate(jax.device_get(found)).astype(np.float64)


def input_mode_text(task: Task) -> str:
    """The mode as text: evaluation, where training replaces the running statistics."""
    text = mode_text(task.network, task.variables, task.data.first, False)
    if task.mode.train and task.has_batch_norm:
        return f"{text}; batch norm by the batch's own statistics, held fixed"
    return text


def _own(inputs: Inputs) -> list[int]:
    """Which of the inputs' floats are of single examples: scalars belong to all."""
    return [index for index, leaf in enumerate(floats_of(inputs)) if jnp.ndim(leaf)]


@dataclasses.dataclass(frozen=True)
class _OfOutputs:
    """The output as a loss; equal for equal functions, so that a check is cached."""

    output: Output

    def __call__(self, outputs: Any, batch: Any) -> Array:
        return self.output(outputs)


@functools.partial(jax.jit, static_argnames=("model", "output", "recalibrated"))
@canonicalize_conv_layouts
def _gradients(
    variables: Any,
    batch: Batch,
    key: Array,
    *,
    model: Model,
    output: Output,
    recalibrated: bool,
) -> Array:
    """(examples, entries), float32."""
    if recalibrated:
        variables = _recalibrate_batch_norm(model, variables, batch, key)
    inputs = inputs_of(model, batch)

    def scalar(floats: list[Any]) -> Array:
        given = (with_floats(inputs, floats), None)
        return output(apply_module(model, variables, given, False, key)[0])

    gradients = jax.grad(scalar)([jnp.asarray(each) for each in floats_of(inputs)])
    flat = [gradients[index] for index in _own(inputs)]
    return jnp.concatenate(
        [leaf.reshape(leaf.shape[0], -1).astype(jnp.float32) for leaf in flat], axis=1
    )


def _recalibrate_batch_norm(
    model: Model, variables: Any, batch: Batch, key: Array
) -> dict[str, Any]:
    """The variables with the batch's statistics in place of the running ones.

    A running average moves from s to m s + (1 - m) b. At s = 0 that is (1 - m) b, and a second
    value gives m (its derivative is 0 in NNX, which stops the gradient): this gives the batch's b
    whatever module normalises. What does not move (m = 1) stays. By vmap over both values, since
    the batch's statistics depend on neither: a scanned network would run twice otherwise.
    """
    old = variables["batch_stats"]

    def moved(statistics: Any) -> Any:
        with intercept_network(_without_dropout):
            given = {**variables, "batch_stats": statistics}
            changed = apply_module(model, given, batch, True, key)[1]
        if "batch_stats" not in changed:
            raise InputError(
                f"{name_of(model)} does not return its batch statistics, as a function; allowed: "
                "EVAL, a linen module, or the network of from_nnx(module)"
            )
        return changed["batch_stats"]

    both = jax.vmap(moved)(jax.tree.map(_zero_and_large, old))
    return {**variables, "batch_stats": jax.tree.map(_statistics_of_batch, old, both)}


def _zero_and_large(old: Array) -> Array:
    return jnp.stack([jnp.zeros_like(old), jnp.full_like(old, _large(old.dtype))])


def _large(dtype: Any) -> float:
    """A power of two, in float32 larger than any statistic, whose rounding then does not matter."""
    return 2.0 ** (jnp.finfo(dtype).maxexp // 2) if jnp.issubdtype(dtype, jnp.inexact) else 1.0


def _statistics_of_batch(old: Array, both: Array) -> Array:
    new, moved = both
    momentum = (moved - new) / _large(old.dtype)
    # Channels have one momentum, but for rounding.
    common = jnp.median(momentum)
    near = jnp.abs(momentum - common) < 16 * jnp.finfo(momentum.dtype).eps
    momentum = jnp.where(near, common, momentum)
    return jnp.where(momentum == 1, old, new / jnp.where(momentum == 1, 1, 1 - momentum))


def _without_dropout(layer: Layer, method: Method, call: Any, arguments: Any, keywords: Any) -> Any:
    if method.name == "__call__" and issubclass(layer.type, nn.Dropout | nnx.Dropout):
        return arguments[0] if arguments else keywords["inputs"]
    return call()
