"""The optimizers of the recipes, and the learning-rate schedule as a fraction of its peak.

The learning rate is an argument of `update` and data of the training state, so one compilation
serves all rates. It scales the output of the optimizer: the momentum of SGD and LARS is one of
gradients, not of updates, as in PyTorch.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from deepjax.errors import require
from deepjax.training.config import TrainConfig
from deepjax.training.step.patterns import map_by_path


def make_optimizer(
    config: TrainConfig, factors: Mapping[str, float] | None = None
) -> optax.GradientTransformationExtraArgs:
    """The configuration's optimizer: `update(gradients, state, params, learning_rate=rate)`.

    factors: of the learning rate by path of a parameter, from `rate_factors`; 0: it is frozen.

    sgd: L2 decay, then momentum (He et al. 2015). lars: You et al. 2017 (arXiv:1708.03888), trust
    ratios for weights alone (`decay_mask`). lamb: You et al. 2019 (arXiv:1904.00962). adamw:
    Loshchilov and Hutter 2017 (arXiv:1711.05101). muon: Jordan et al. 2024, each convolution as a
    matrix of its outputs, Adam for all other parameters. lamb, adamw and muon decay the weights in
    the update, not in the gradient. rmsprop: TensorFlow's, with the constants of Szegedy et al.
    2015 (arXiv:1512.00567, section 8). Gradient clipping comes before all of them.
    """
    decay = optax.add_decayed_weights(
        config.optimization.weight_decay,
        None if config.optimization.decay_norm_and_bias else decay_mask,
    )
    momentum = optax.trace(config.optimization.momentum, nesterov=config.optimization.nesterov)
    muon = {
        "beta": config.optimization.momentum,
        "nesterov": config.optimization.nesterov,
        "muon_weight_dimension_numbers": _as_matrices,
    }
    bodies = {
        "sgd": lambda: (decay, momentum),
        "lars": lambda: (
            decay,
            optax.masked(optax.scale_by_trust_ratio(trust_coefficient=0.001), decay_mask),
            momentum,
        ),
        "lamb": lambda: (
            optax.scale_by_adam(eps=1e-6),
            decay,
            optax.masked(optax.scale_by_trust_ratio(), decay_mask),
        ),
        "adamw": lambda: (optax.scale_by_adam(), decay),
        "muon": lambda: (optax.contrib.muon(1.0, **muon), optax.scale(-1.0), decay),
        "rmsprop": lambda: (decay, optax.scale_by_rms(0.9, eps=1.0, initial_scale=1.0), momentum),
    }
    group = config.optimization
    clip = [optax.clip_by_global_norm(group.grad_clip_norm)] if group.grad_clip_norm else []
    return scale_by_learning_rate(optax.chain(*clip, *bodies[group.optimizer]()), factors)


def scale_by_learning_rate(
    inner: optax.GradientTransformation, factors: Mapping[str, float] | None = None
) -> optax.GradientTransformationExtraArgs:
    """The updates of `inner` times -`learning_rate`, a keyword of `update`.

    factors: of the rate by path of a parameter; one of 0 leaves the parameter bitwise as it is.

    Not `optax.inject_hyperparams`, which keeps the rate and a step count of its own in the state of
    the optimizer: skipped steps leave that state unchanged, while the schedule moves on. And not a
    link of the chain, whose empty state older checkpoints lack.
    """

    def update(
        gradients: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        *,
        learning_rate: jax.Array,
    ) -> tuple[optax.Updates, optax.OptState]:
        updates, state = inner.update(gradients, state, params)
        if factors is not None:
            updates = _scaled(updates, factors)
        return jax.tree.map(lambda leaf: -learning_rate.astype(leaf.dtype) * leaf, updates), state

    # The declared type of the class is that of transformations without extra arguments.
    return optax.GradientTransformationExtraArgs(
        inner.init,
        update,  # pyright: ignore[reportArgumentType]
    )


def _scaled(updates: Any, factors: Mapping[str, float]) -> Any:
    def scale(path: str, leaf: jax.Array) -> jax.Array:
        factor = factors[path]
        # A frozen parameter's update may be infinite, and 0 times infinity is not 0.
        return leaf * jnp.asarray(factor, leaf.dtype) if factor else jnp.zeros_like(leaf)

    return map_by_path(scale, updates)


def decay_mask(params: Any) -> Any:
    """True for parameters of two axes or more (as in timm); false for biases and gains of norms.

    These are known by their names, "bias", "scale" and "gain", in stacked blocks too.
    """

    def is_weight(path: tuple[Any, ...], leaf: Any) -> bool:
        return leaf.ndim > 1 and path[-1].key not in ("bias", "scale", "gain")

    return jax.tree_util.tree_map_with_path(is_weight, params)


def make_schedule(config: TrainConfig) -> optax.Schedule:
    """Step -> fraction of the peak rate: linear warm-up from zero, then the schedule's decay.

    cosine, linear or root (square root of the fraction of steps left) to zero, a factor of 0.1 at
    each milestone (step), a factor every so many epochs (exponential), or constant. The warm-up has
    at most all steps but the last, which has the peak rate or less; milestones come after the first
    step. Raises InputError if decay_epochs is less than half a step.
    """
    total = config.total_steps
    warmup = min(round(config.optimization.warmup_epochs * config.steps_per_epoch), total - 1)
    every = round(config.optimization.decay_epochs * config.steps_per_epoch)
    if config.optimization.schedule == "exponential":
        least = f"half a step or more, {0.5 / config.steps_per_epoch:.3g} epochs"
        require(every >= 1, "decay_epochs", config.optimization.decay_epochs, least)
    bodies = {
        "cosine": lambda: optax.cosine_decay_schedule(1.0, total - warmup),
        "linear": lambda: optax.linear_schedule(1.0, 0.0, total - warmup),
        "root": lambda: optax.polynomial_schedule(1.0, 0.0, 0.5, total - warmup),
        "exponential": lambda: _staircase(every, config.optimization.decay_rate),
        "step": lambda: optax.piecewise_constant_schedule(
            1.0, _tenths(config.optimization.milestones, total, warmup)
        ),
        "constant": lambda: optax.constant_schedule(1.0),
    }
    rise = optax.linear_schedule(1.0 / max(warmup, 1), 1.0, max(warmup - 1, 1))
    joined = optax.join_schedules([rise, bodies[config.optimization.schedule]()], [warmup])
    # optax mixes counts and rates, and leaves type promotion to JAX.
    return lambda step: joined(jnp.asarray(step, jnp.float32))


def _staircase(every: int, rate: float) -> optax.Schedule:
    """One factor for each `every` steps done."""
    decay = optax.exponential_decay(1.0, every, rate, staircase=True)
    # Half a step later: XLA divides by multiplying with 1 / every, and 82 / 41 may be less than 2.
    return lambda step: decay(step + 0.5)


def _tenths(milestones: Sequence[float], total: int, warmup: int) -> dict[int, float]:
    """Step after the warm-up -> factor of the rate there; milestones of short runs may coincide."""
    factors: dict[int, float] = {}
    for milestone in milestones:
        step = max(1, round(milestone * total)) - warmup
        factors[step] = factors.get(step, 1.0) * 0.1
    return factors


def _as_matrices(params: Any) -> Any:
    """Muon's view of each weight: the last axis is the output, the axes before it the input.

    None for other parameters. The first axis of the blocks that deepjax stacks is the block.
    """

    def view(
        path: tuple[Any, ...], leaf: jax.Array, is_weight: bool
    ) -> optax.contrib.MuonDimensionNumbers | None:
        is_stacked = any(re.fullmatch(r"stage\d+_blocks", str(part.key)) for part in path)
        axes = tuple(range(1 if is_stacked else 0, leaf.ndim - 1))
        return (
            optax.contrib.MuonDimensionNumbers(reduction_axis=axes, output_axis=(leaf.ndim - 1,))
            if is_weight
            else None
        )

    return jax.tree_util.tree_map_with_path(view, params, decay_mask(params))
