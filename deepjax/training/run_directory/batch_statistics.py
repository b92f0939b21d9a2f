"""Batch statistics of given parameters, computed again on training batches."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from deepjax.data import Dataset
from deepjax.data.loader import Batch
from deepjax.errors import InputError
from deepjax.training.build import step_options
from deepjax.training.config import TrainConfig
from deepjax.training.distributed.sharding import Partitioner, make_mesh
from deepjax.training.step.preprocess import preprocess_batch
from deepjax.training.step.state import split_seed
from deepjax.training.step.step import mutable_aux_collection


def batch_statistics(
    config: TrainConfig,
    model: nn.Module,
    dataset: Dataset,
    params: Any,
    batches: Iterable[Batch],
    report: Callable[[int], None] = lambda done: None,
) -> Any:
    """Means over batches of the means and variances of each batch norm, float64.

    As torch's `update_bn` (Izmailov et al. 2018, arXiv:1803.05407), but variances are biased, as
    those of training here. Images are preprocessed as in the training of `config`. A running
    average becomes m old + (1 - m) new: `new` follows from old = 0, and m is the derivative. Raises
    InputError for statistics that training does not change.
    """
    options = step_options(config, size=config.input_shape[0])
    mutable = ["batch_stats", *mutable_aux_collection(config.objective.auxiliary_weight)]
    partitioner = Partitioner(make_mesh())
    key, zeros = split_seed(config.seed)[1], _zero_statistics(model, config)

    @jax.jit
    def of_batch(params: Any, batch: dict[str, Array], key: Array) -> tuple[Any, Any]:
        images = preprocess_batch(key, batch, dataset, options)["image"]

        def updated(stats: Any) -> Any:
            given = {"params": params, "batch_stats": stats}
            rngs = {"dropout": key}
            output: Any = model.apply(given, images, train=True, mutable=mutable, rngs=rngs)
            return output[1]["batch_stats"]

        return jax.jvp(updated, (zeros,), (jax.tree.map(jnp.ones_like, zeros),))

    sums, done = jax.tree.map(lambda leaf: np.zeros(leaf.shape), zeros), 0
    with jax.set_mesh(partitioner.mesh):  # bn_scope="replica" asks it for the number of devices
        placed = partitioner.put_state(params)
        for batch in batches:
            partitioner.check_batch_size(len(batch["image"]))
            arrays = partitioner.put_batch({name: batch[name] for name in ("image", "label")})
            found = jax.device_get(of_batch(placed, arrays, jax.random.fold_in(key, done)))
            sums = jax.tree.map(lambda total, *of: total + _statistic(*of), sums, *found)
            done += 1
            report(done)
    return jax.tree.map(lambda leaf: leaf / done, sums)


def _statistic(new: np.ndarray, momentum: np.ndarray) -> np.ndarray:
    """The statistic of a batch from its part in the running average."""
    if np.any(momentum >= 1):
        raise InputError(
            "the network has batch statistics that training does not change, so that those of the "
            "mean weights cannot be computed"
        )
    return new.astype(np.float64) / (1 - momentum.astype(np.float64))


def _zero_statistics(model: nn.Module, config: TrainConfig) -> Any:
    images = jax.ShapeDtypeStruct((1, *config.input_shape), jnp.float32)
    init = functools.partial(model.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), images)["batch_stats"]
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
