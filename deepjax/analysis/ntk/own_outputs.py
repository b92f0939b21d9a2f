"""Networks whose examples do not influence each other: what kernels and linearisations need."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from deepjax.analysis.core.mode import Mode, require_mode
from deepjax.analysis.network.adapter import Inputs
from deepjax.analysis.network.batch import Batches, batch_size
from deepjax.analysis.network.module import (
    Loss,
    Model,
    apply_module,
    describe_outputs,
    has_batch_norm,
    inputs_of,
    no_loss,
    shapes_of,
    validate_inputs,
)
from deepjax.analysis.network.network import Network
from deepjax.analysis.network.task import Task, make_task
from deepjax.errors import InputError, require


def prepare_own_outputs(
    model: Model,
    variables: Any,
    batch: Batches,
    *,
    mode: Mode,
    key: Array | None,
    loss: Loss = no_loss,
) -> tuple[Task, int]:
    """(the task, how many numbers the network returns per example).

    Raises InputError unless the network returns one array with a row per example, which depends on
    this example alone.
    """
    task = prepare_one_array(model, variables, batch, mode=mode, key=key, loss=loss)
    inputs = inputs_of(task.network, task.data.first)
    return task, _count_outputs(
        task.network, mode.train, batch_size(inputs), *shapes_of((task.variables, inputs))
    )


def prepare_one_array(
    model: Model,
    variables: Any,
    batch: Batches,
    *,
    mode: Mode,
    key: Array | None,
    loss: Loss = no_loss,
) -> Task:
    """The task, also of inputs without an axis of examples, such as a graph.

    Raises InputError unless the network returns one array of floats.
    """
    task = make_task(model, variables, batch, loss=loss, mode=mode, key=key)
    require_own_outputs(task.variables, mode)
    inputs = inputs_of(task.network, task.data.first)
    _count_outputs(task.network, mode.train, None, *shapes_of((task.variables, inputs)))
    return task


def require_own_outputs(variables: Any, mode: Mode) -> None:
    """Raise InputError where the examples of a batch share its statistics."""
    if require_mode(mode).train and has_batch_norm(variables):
        raise InputError(
            f"mode is {mode!r}; allowed: EVAL, because under batch statistics an example has no "
            "output of its own"
        )


@functools.lru_cache(maxsize=256)
def _count_outputs(
    network: Network, train: bool, examples: int | None, structure: Any, shapes: tuple[Any, ...]
) -> int:
    """Numbers per example; in all where there are no examples."""
    variables, inputs = jax.tree.unflatten(structure, shapes)
    outputs = jax.eval_shape(
        lambda variables, inputs: apply_module(network, variables, (inputs, None), train)[0],
        variables,
        inputs,
    )
    fits = (
        isinstance(outputs, jax.ShapeDtypeStruct)
        and jnp.issubdtype(outputs.dtype, jnp.floating)
        and (examples is None or outputs.shape[:1] == (examples,))
    )
    rows = "" if examples is None else f", ({examples}, ...)"
    allowed = f"one array of floats{rows}: choose by Network(..., output=)"
    require(fits, "the network's output", describe_outputs(outputs), allowed)
    return outputs.size // (examples or 1)


def single_examples(task: Task) -> Inputs:
    """The inputs of all batches as examples along a leading axis, each of them a batch of one.

    On the host, so that no number of examples compiles anything; scalars are repeated. Raises
    InputError where the network cannot take a single example.
    """
    inputs = inputs_of(task.network, task.data.stacked)
    size = batch_size(inputs_of(task.network, task.data.first))

    def split(leaf: Array) -> Any:
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        host: Any = leaf if is_key else np.asarray(leaf)
        if leaf.ndim == 1:  # a scalar of each batch
            return host[np.repeat(np.arange(task.data.batches), size)]
        return host.reshape(-1, 1, *leaf.shape[2:])

    examples = jax.tree.map(split, inputs)
    first = jax.tree.map(lambda leaf: leaf[0], examples)
    validate_inputs(task.network, task.variables, (first, None), no_loss, task.mode.train)
    return examples
