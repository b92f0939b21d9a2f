"""SGD as the papers use it, and the course of the learning rate as a fraction of its peak."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from deepjax.training.config import TrainConfig


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """L2 decay, then momentum; the learning rate is no part of it (it is data of the state, so one compilation serves all)."""
    mask = None if config.decay_all else decay_mask
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay, mask),
        optax.trace(config.momentum, nesterov=config.nesterov),
    )


def decay_mask(params: Any) -> Any:
    """True for kernels; false for biases, gains and the scales of normalisation, also where blocks are stacked."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1] == jax.tree_util.DictKey("kernel"), params)


def make_schedule(config: TrainConfig) -> optax.Schedule:
    """Step -> fraction of the peak rate: linear warm-up from zero, then cosine to zero, or tenths at the milestones."""
    total = config.total_steps
    warmup = min(round(config.warmup_epochs * config.steps_per_epoch), total - 1)
    if config.schedule == "cosine":
        body = optax.cosine_decay_schedule(1.0, total - warmup)
    else:
        body = optax.piecewise_constant_schedule(1.0, {round(m * total) - warmup: 0.1 for m in config.milestones})
    rise = optax.linear_schedule(1.0 / max(warmup, 1), 1.0, max(warmup - 1, 1))
    joined = optax.join_schedules([rise, body], [warmup])
    return lambda step: joined(jnp.asarray(step, jnp.float32))  # optax mixes counts and rates, and leaves promotion to JAX
