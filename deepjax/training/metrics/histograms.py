"""Histograms of parameters and gradients, computed on the devices."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from deepjax.analysis.core.params import by_path, path_string
from deepjax.backend.conv_layouts import canonicalize_conv_layouts
from deepjax.training.build import CompiledTraining, step_options
from deepjax.training.distributed.sharding import replicated_sharding
from deepjax.training.metrics.writer import Histogram
from deepjax.training.run_options import RunOptions
from deepjax.training.step.preprocess import preprocess_batch
from deepjax.training.step.state import TrainState
from deepjax.training.step.step import DROPOUT, classifier_loss

BINS = 64
Histograms = Callable[[TrainState, Any], dict[str, Histogram]]


def requested_histograms(programs: CompiledTraining, options: RunOptions) -> Histograms | None:
    """The function that the options ask for, or None."""
    return make_histograms(programs) if options.histogram_every else None


def make_histograms(programs: CompiledTraining) -> Histograms:
    """(state, the batch of its last step) -> a histogram for each "params/..." and "gradients/...".

    Compiled at the first call. Gradients are the main classifier's, at the parameters after the
    step. All processes call it. Leaves with a value that is not finite have no histogram.
    """
    config, model, mesh = programs.config, programs.model, programs.partitioner.mesh

    def gradients_of(state: TrainState, batch: Any, size: int) -> Any:
        key = jax.random.fold_in(state.key, state.step)
        seen = preprocess_batch(key, batch, programs.dataset, step_options(config, size=size))
        rngs = {"dropout": jax.random.fold_in(key, DROPOUT)}

        def loss_of(params: Any) -> Array:
            variables = {"params": params, "batch_stats": state.batch_stats}
            output: Any = model.apply(
                variables, seen["image"], train=True, mutable=["batch_stats"], rngs=rngs
            )
            return classifier_loss(output[0], seen, config.objective.loss)

        return jax.grad(loss_of)(state.params)

    def compute(state: TrainState, batch: Any, size: int) -> Any:
        gradients = canonicalize_conv_layouts(functools.partial(gradients_of, size=size))
        trees = {"params": state.params, "gradients": gradients(state, batch)}
        return {
            f"{name}/{path_string(path)}": count_values(leaf)
            for name, tree in trees.items()
            for path, leaf in by_path(tree).items()
            if leaf.size
        }

    compiled = jax.jit(compute, static_argnums=2, out_shardings=replicated_sharding(mesh))

    def histograms(state: TrainState, batch: Any) -> dict[str, Histogram]:
        size = config.shape_at(int(state.step) - 1)[0]
        with jax.set_mesh(mesh):
            found = jax.device_get(compiled(state, batch, size))
        return {
            name: Histogram(counts, np.linspace(low, high, BINS + 1, dtype=np.float64))
            for name, (counts, low, high) in found.items()
            if np.isfinite(low) and np.isfinite(high)
        }

    return histograms


def count_values(values: Array) -> tuple[Array, Array, Array]:
    """Counts (BINS,) int32 of values in equal bins from the lowest to the highest; these two.

    As `numpy.histogram`: a bin has its lower edge, the last one both.
    """
    flat = values.ravel().astype(jnp.float32)
    low, high = jnp.min(flat), jnp.max(flat)
    width = jnp.where(high > low, high - low, 1.0)
    places = jnp.clip((flat - low) / width * BINS, 0, BINS - 1).astype(jnp.int32)
    # Counts in float32, as those of jnp.histogram, stop at 2^24.
    return jnp.bincount(places, length=BINS), low, high
