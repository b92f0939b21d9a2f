"""How a step is spread: one mesh over all devices, the batch split along it, the state on each of them."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from deepjax.errors import require


def make_mesh() -> Mesh:
    """A mesh with the one axis "data" over all devices of all processes."""
    # linen's Dropout raises under explicit axes, which jax.make_mesh would make by default.
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> NamedSharding:
    """The first axis divided over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's share of a batch -> global arrays, split over the devices."""
    sharding = split_batch(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Raise InputError unless the devices can share the batch equally."""
    count = mesh.devices.size
    require(batch_size % count == 0, "batch_size", batch_size, f"a multiple of the {count} devices")


def compile_train_step(step: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """Jit of (state, batch) -> (state, metrics): batch split, state replicated and donated. Statistics span the whole batch."""
    whole, shares = replicated(mesh), split_batch(mesh)
    return jax.jit(step, in_shardings=(whole, shares), out_shardings=whole, donate_argnums=0)


def compile_eval_step(step: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """Jit of (params, batch_stats, batch) -> sums."""
    whole, shares = replicated(mesh), split_batch(mesh)
    return jax.jit(step, in_shardings=(whole, whole, shares), out_shardings=whole)
