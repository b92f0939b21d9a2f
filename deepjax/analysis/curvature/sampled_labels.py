"""Labels from a network's own distribution, for the sampled Fisher matrix."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from deepjax.analysis.core.losses import with_labels
from deepjax.analysis.core.params import widened
from deepjax.analysis.network.batch import batch_size, single_example
from deepjax.analysis.network.module import (
    Batch,
    Network,
    apply_module,
    describe_outputs,
    stream_key,
)
from deepjax.analysis.network.run import batch_key
from deepjax.analysis.network.task import Task
from deepjax.backend.conv_layouts import canonicalize_conv_layouts
from deepjax.errors import require


def sample_labels(task: Task, samples: int) -> tuple[Any, int]:
    """(batches with labels that the network's own distribution samples, their examples)."""
    require(isinstance(samples, int) and samples >= 1, "samples", samples, "None, or 1 or more")
    size, batches = batch_size(task.data.first), task.data.batches
    parts = []
    for index in range(batches):
        batch = jax.tree.map(lambda leaf, i=index: leaf[i], task.data.stacked)
        repeated = jax.tree.map(
            lambda leaf: jnp.concatenate([leaf] * samples) if jnp.ndim(leaf) else leaf, batch
        )
        labels = _labels(
            task.variables,
            repeated,
            batch_key(task.key, index, batches),
            jax.random.fold_in(stream_key(task.key, "labels"), index),
            network=task.network,
            train=task.mode.train,
        )
        parts.append(with_labels(repeated, labels))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts), size * batches * samples


@functools.partial(jax.jit, static_argnames=("network", "train"))
@canonicalize_conv_layouts
def _labels(
    variables: Any, batch: Batch, key: Array, of_labels: Array, *, network: Network, train: bool
) -> Array:
    """(examples,): a label for each from its own outputs, with the random streams of `_loss`."""

    def logits(index: Array) -> Array:
        one, own = single_example(batch, index), jax.random.fold_in(key, index)
        outputs, _ = apply_module(network, variables, one, train, own)
        require(
            jnp.ndim(outputs) == 2,
            "outputs",
            describe_outputs(outputs),
            "(examples, classes), to sample one label per example",
        )
        return widened(outputs[0])

    return jax.random.categorical(of_labels, jax.vmap(logits)(jnp.arange(batch_size(batch))))
