"""Sharding: one mesh over all devices, batches divided over it, state replicated or sharded."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.mesh_utils import create_hybrid_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from deepjax.errors import InputError, require

AXIS = "data"  # the devices of a slice, which are all devices but of several TPU slices; pmap's
SLICE_AXIS = "slice"  # several TPU slices, which a slower network connects
SMALLEST_SHARD = 2**12  # elements: smaller parameters are replicated, as gathering costs more

Strategy = Literal["jit", "pmap"]


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over the devices of all processes: axis "data"; of several slices "slice", "data"."""
    devices = jax.devices() if devices is None else devices
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    # linen's Dropout raises under explicit axes, which jax.make_mesh would make by default.
    if slices == 1:
        return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)
    by_slice = create_hybrid_device_mesh((1, len(devices) // slices), (slices, 1), devices)
    return Mesh(by_slice, (SLICE_AXIS, AXIS), axis_types=(AxisType.Auto,) * 2)


def replicated_sharding(mesh: Mesh) -> NamedSharding:
    """Every device has the complete array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis is divided over the devices of all slices."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


@dataclasses.dataclass(frozen=True)
class Partitioner:
    """Shardings of batches and state, and the compilation of steps for them.

    What is computed does not depend on it, except for dropout. jit: one program over the mesh,
    which XLA partitions; `fsdp` shards parameters and optimizer state over the devices of a slice
    too. pmap: a program per device, with means over the devices for values of the global batch; for
    one process. Dropout samples its masks per device under pmap, so they differ from those under
    jit.
    """

    mesh: Mesh
    strategy: Strategy = "jit"
    fsdp: bool = False

    def __post_init__(self) -> None:
        require(self.strategy in ("jit", "pmap"), "strategy", self.strategy, "'jit', 'pmap'")
        if self.strategy == "pmap" and (self.fsdp or jax.process_count() > 1):
            raise InputError(
                "strategy is 'pmap'; it is for one process and replicated parameters: "
                "choose 'jit', or drop --fsdp"
            )

    @property
    def axis(self) -> str | None:
        """The axis over which a train step under pmap takes means; None under jit."""
        return AXIS if self.strategy == "pmap" else None

    def check_batch_size(self, batch_size: int, accumulate: int = 1) -> None:
        """Raise InputError unless the devices divide the batch, and each part of it."""
        count = self.mesh.devices.size
        parts = f", {accumulate} parts each" if accumulate > 1 else ""
        require(
            batch_size % (count * accumulate) == 0,
            "batch_size",
            batch_size,
            f"a multiple of the {count} devices{parts}",
        )

    def state_shardings(self, state: Any) -> Any:
        """A sharding for each leaf of a state (arrays or their shapes)."""
        return jax.tree.map(
            lambda leaf: NamedSharding(self.mesh, self._partition(leaf.shape)), state
        )

    def put_state(self, state: Any) -> Any:
        """A state that is complete and equal in every process -> on the devices."""
        if jax.process_count() == 1:
            return jax.device_put(state, self.state_shardings(state))
        # Keys and arrays on a device cannot be put on devices of other processes: via the host.
        return jax.tree.map(_put_global, state, self.state_shardings(state))

    def put_batch(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """This process's part of a batch -> global arrays, sharded over the devices."""
        sharding = batch_sharding(self.mesh)
        return {
            name: jax.make_array_from_process_local_data(sharding, value)
            for name, value in batch.items()
        }

    def put_ids(self, ids: np.ndarray) -> jax.Array:
        """Ids (steps, batch), equal in every process -> on the devices, the batch sharded."""
        return _put_global(ids, self._ids_sharding())

    def put_replicated(self, values: np.ndarray) -> jax.Array:
        """An array that is equal in every process -> complete on every device."""
        return _put_global(values, replicated_sharding(self.mesh))

    def compile_train(self, step: Callable[..., Any], state: Any) -> Any:
        """(state, batch) -> (state, metrics), jitted with shardings, the state donated."""
        if self.strategy == "pmap":
            return self._pmapped(step)
        where = self.state_shardings(state)
        replicated, batched = replicated_sharding(self.mesh), batch_sharding(self.mesh)
        return jax.jit(
            step, donate_argnums=0, in_shardings=(where, batched), out_shardings=(where, replicated)
        )

    def compile_resident(self, steps: Callable[..., Any], state: Any) -> Any:
        """(state, data, ids, count) -> (state, metrics), jitted with shardings, the state donated.

        The data set is complete on every device, which reads its part of each batch.
        """
        where, replicated = self.state_shardings(state), replicated_sharding(self.mesh)
        return jax.jit(
            steps,
            donate_argnums=0,
            in_shardings=(where, replicated, self._ids_sharding(), replicated),
            out_shardings=(where, replicated),
        )

    def compile_gather(self) -> Any:
        """(data, ids (batch,)) -> the batch of these ids, sharded over the devices."""

        def gather(data: Mapping[str, jax.Array], ids: jax.Array) -> dict[str, jax.Array]:
            return {name: values[ids] for name, values in data.items()}

        return jax.jit(gather, out_shardings=batch_sharding(self.mesh))

    def compile_eval(self, step: Callable[..., Any], params: Any, batch_stats: Any) -> Any:
        """(params, batch_stats, batch) -> sums, under jit with either strategy."""
        where = (
            self.state_shardings(params),
            self.state_shardings(batch_stats),
            batch_sharding(self.mesh),
        )
        return jax.jit(step, in_shardings=where, out_shardings=replicated_sharding(self.mesh))

    def _ids_sharding(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(None, self.mesh.axis_names))

    def _pmapped(self, step: Callable[..., Any]) -> Any:
        count = self.mesh.devices.size
        mapped = jax.pmap(
            step,
            AXIS,
            in_axes=(None, 0),
            out_axes=(None, None),
            devices=list(self.mesh.devices.flat),
            donate_argnums=0,
        )
        replicated, batched = replicated_sharding(self.mesh), batch_sharding(self.mesh)

        def run(state: Any, batch: Any) -> Any:
            rows = jax.tree.map(
                lambda leaf: leaf.reshape(count, leaf.shape[0] // count, *leaf.shape[1:]), batch
            )
            return mapped(state, rows)

        return jax.jit(
            run, in_shardings=(replicated, batched), out_shardings=replicated, donate_argnums=0
        )

    def _partition(self, shape: tuple[int, ...]) -> PartitionSpec:
        """FSDP: of a large array the longest axis that the devices divide, the last of equals."""
        count = self.mesh.shape[AXIS]
        fitting = [axis for axis, size in enumerate(shape) if size % count == 0]
        if not self.fsdp or not fitting or math.prod(shape) < SMALLEST_SHARD:
            return PartitionSpec()
        axis = max(fitting, key=lambda axis: (shape[axis], axis))
        return PartitionSpec(*([None] * axis), AXIS)


def _put_global(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """An array that is complete in every process -> one global array."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(
            _put_global(jax.random.key_data(leaf), sharding), impl=jax.random.key_impl(leaf)
        )
    on_host = np.asarray(leaf)
    return jax.make_array_from_callback(on_host.shape, sharding, lambda index: on_host[index])
