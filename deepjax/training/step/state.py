"""The training state: everything that one step passes to the next, as one pytree."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jax import Array

from deepjax.analysis import kernel_norms
from deepjax.analysis.network.module import init_variables
from deepjax.training.step.guard import GuardState, init_guard


class TrainState(struct.PyTreeNode):
    """Parameters, statistics, optimizer state and counters of a run.

    The peak learning rate is data, so that one compilation serves all rates.
    """

    step: Array  # int32: steps done
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    key: Array  # typed key; step t uses fold_in(key, t)
    learning_rate: Array  # float32: the peak
    guard: GuardState
    ema: dict[str, Any]  # exponential averages of "params" and "batch_stats", or empty
    # Sums over the epoch so far: loss, errors, images, steps, gradient norms by layer.
    totals: dict[str, Any]


def init_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, ...],
    learning_rate: float,
    seed: int,
    heads: Sequence[str] = (),
    ema: bool = False,
) -> TrainState:
    """The state before the first step.

    `image_shape`: (height, width, channels). `heads`: the auxiliary heads that are trained. `ema`:
    keep exponential averages of parameters and statistics.
    """
    init_key, key = split_seed(seed)
    variables = init_variables(model, init_key, (1, *image_shape))
    return _fresh(
        optimizer, tuple(heads), ema, variables, key, jnp.asarray(learning_rate, jnp.float32)
    )


def split_seed(seed: int) -> tuple[Array, Array]:
    """The key that initialises the parameters, and the key of the training."""
    init_key, key = jax.random.split(jax.random.key(seed))
    return init_key, key


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _fresh(
    optimizer: optax.GradientTransformation,
    heads: tuple[str, ...],
    ema: bool,
    variables: dict[str, Any],
    key: Array,
    learning_rate: Array,
) -> TrainState:
    """A program apart from the initialisation, which runs with other optimizers then share."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(variables["params"]),
        key=key,
        learning_rate=learning_rate,
        guard=init_guard(),
        ema=init_ema(variables) if ema else {},
        totals=zero_totals(variables["params"], heads),
    )


def init_ema(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The averages before the first step: copies, since the step donates its state."""
    copy = {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}
    return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), copy)


def eval_variables(state: TrainState) -> tuple[Any, Any]:
    """The parameters and statistics to evaluate: their averages, if those are kept."""
    return (
        (state.ema["params"], state.ema["batch_stats"])
        if state.ema
        else (state.params, state.batch_stats)
    )


def zero_totals(params: Any, heads: Sequence[str] = ()) -> dict[str, Any]:
    """The zero sums of an epoch; one buffer a leaf, since the step donates them."""

    def zeros(names: Iterable[str]) -> dict[str, Array]:
        return {name: jnp.zeros((), jnp.float32) for name in names}

    return zeros(("loss", "errors", "images", "steps")) | {
        "gradient_norms": zeros(jax.eval_shape(kernel_norms, params)),
        "auxiliary": {head: zeros(("loss", "errors")) for head in heads},
    }


def auxiliary_heads(model: nn.Module, image_shape: tuple[int, ...]) -> tuple[str, ...]:
    """Names of the auxiliary heads of a network, by abstract evaluation."""
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    init = functools.partial(model.init, train=False)
    variables = jax.eval_shape(init, jax.random.key(0), images)
    _, sown = jax.eval_shape(
        lambda v, x: model.apply(v, x, train=False, mutable=["auxiliary"]), variables, images
    )
    return tuple(sown.get("auxiliary", {}))
