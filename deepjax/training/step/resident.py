"""Several training steps as one program, on a data set that stays on the devices.

Between two calls of a compiled step the host reads a batch, copies it and starts the program. Small
networks compute for less time than that takes on an accelerator.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import Array, lax

from deepjax.backend.conv_layouts import canonicalize_conv_layouts
from deepjax.training.step.state import TrainState
from deepjax.training.step.step import Metrics, TrainStep

ResidentStep = Callable[[TrainState, Mapping[str, Array], Array, Array], tuple[TrainState, Metrics]]


def make_resident_step(step: TrainStep) -> ResidentStep:
    """(state, data, ids, count) -> the state after `count` steps, and the metrics of each.

    data: "image" (images, height, width, channels) uint8 and "label" (images,) int32, all training
    images. ids: (capacity, batch) int32, a row for each step, of which the first `count` are used.
    The metrics have a leading axis of `capacity`. The loop has a dynamic number of steps, so one
    compilation serves all; each step is that of `make_train_step`.
    """

    def steps(
        state: TrainState, data: Mapping[str, Array], ids: Array, count: Array
    ) -> tuple[TrainState, Metrics]:
        def take(number: Array | int) -> dict[str, Array]:
            return {name: values[ids[number]] for name, values in data.items()}

        def one(number: Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
            state, rows = carry
            state, metrics = step(state, take(number))
            return state, jax.tree.map(lambda row, new: row.at[number].set(new), rows, metrics)

        _, metrics = jax.eval_shape(lambda: step(state, take(0)))
        rows = jax.tree.map(lambda leaf: jnp.zeros((len(ids), *leaf.shape), leaf.dtype), metrics)
        return lax.fori_loop(0, count, one, (state, rows))

    return canonicalize_conv_layouts(steps)
