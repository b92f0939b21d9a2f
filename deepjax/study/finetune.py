"""Training from given weights and state by state; evaluating given weights; steps to a loss.

A normal run always starts from random initialisation and returns only its end.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from deepjax.analysis import cross_entropy
from deepjax.data.loader import train_batches
from deepjax.training import CompiledTraining, RunOptions, TrainConfig, compile_training
from deepjax.training.evaluator import Evaluator
from deepjax.training.step.state import TrainState

LossOf = Callable[[Any], float]  # parameters -> loss


def compiled_training(
    config: TrainConfig, data_dir: str | None = None, make: Any = None
) -> CompiledTraining:
    """The compiled configuration, cached: learning rate and seed are not part of it."""
    return _compiled(dataclasses.replace(config, learning_rate=0.1, seed=0), data_dir, make)


@functools.lru_cache(maxsize=4)
def _compiled(config: TrainConfig, data_dir: str | None, make: Any) -> CompiledTraining:
    return compile_training(config, RunOptions(data_dir=data_dir), make=make)


def initial_variables(config: TrainConfig, data_dir: str | None = None) -> dict[str, Any]:
    """The variables that a run of this configuration starts from."""
    state = compiled_training(config, data_dir).fresh_state(config)
    return {"params": state.params, "batch_stats": state.batch_stats}


def iterate_training(
    programs: CompiledTraining, config: TrainConfig, start: TrainState | None = None
) -> Iterator[tuple[int, TrainState]]:
    """Yield (steps done, state) before the first step and after each.

    start: the first state; by default initialised from the configuration's seed. The next step
    donates the state: use it before.
    """
    state = programs.fresh_state(config) if start is None else start
    yield 0, state
    batches = train_batches(
        programs.train_split, config.batch_size, config.seed, config.total_steps
    )
    for step, batch in enumerate(batches, 1):
        state, _ = programs.train_step(state, programs.partitioner.put_batch(batch))
        yield step, state


def finetune(config: TrainConfig, variables: Any, data_dir: str | None = None) -> dict[str, Any]:
    """The variables after the configured training, started from given variables."""
    programs = compiled_training(config, data_dir)
    # Copied, since the step donates its state.
    start = {
        name: jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), variables[name])
        for name in ("params", "batch_stats")
    }
    first = programs.partitioner.put_state(programs.fresh_state(config).replace(**start))
    _, last = collections.deque(iterate_training(programs, config, first), maxlen=1).pop()
    return {"params": last.params, "batch_stats": last.batch_stats}


def snapshot(state: TrainState) -> dict[str, Any]:
    """A copy of what a training has done so far, since the next step donates the state."""
    names = ("step", "params", "batch_stats", "opt_state")
    return {
        name: jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), getattr(state, name))
        for name in names
    }


def finish(
    programs: CompiledTraining, config: TrainConfig, done: Mapping[str, Any]
) -> dict[str, Any]:
    """The variables at the end of a training that goes on from a snapshot with other data.

    The order and augmentation of the images are those with which a run of the configuration's seed
    begins; schedule and momentum go on.
    """
    left = config.total_steps - int(done["step"])
    start = programs.partitioner.put_state(programs.fresh_state(config).replace(**done))
    for step, state in iterate_training(programs, config, start):
        if step == left:
            return {"params": state.params, "batch_stats": state.batch_stats}
    raise ValueError(f"the training has {config.total_steps} steps, the snapshot {done['step']}")


def train_error(config: TrainConfig, variables: Any, data_dir: str | None = None) -> float:
    """Error in evaluation mode on the images that a run reports: the first, or all; a fraction."""
    evaluate = Evaluator(compiled_training(config, data_dir))
    limit = config.data.eval_train_images or None
    evaluation = evaluate(variables["params"], variables["batch_stats"], "train", limit=limit)
    return evaluation.row("train")["train_error"]


def loss_on(model: nn.Module, batch: Any) -> LossOf:
    """The loss on one batch as a function of the parameters, compiled once.

    For networks without batch statistics.
    """

    @jax.jit
    def compute(params: Any, batch: Any) -> jax.Array:
        logits: Any = model.apply({"params": params}, batch["image"])
        return cross_entropy(logits, batch)

    return lambda params: float(compute(params, batch))


def steps_to(
    programs: CompiledTraining,
    config: TrainConfig,
    loss_of: LossOf,
    target: float,
    max_steps: float = math.inf,
) -> float:
    """Steps until the loss is at most the target, evaluated every 10 % of the steps so far.

    Infinite if not within `max_steps`, or where the loss is not finite.
    """
    next_evaluation = 1
    for step, state in iterate_training(programs, config):
        if step > max_steps:
            return math.inf
        if step < next_evaluation:
            continue
        loss = loss_of(state.params)
        if loss <= target or not math.isfinite(loss):
            return step if loss <= target else math.inf
        next_evaluation = step + max(1, step // 10)
    return math.inf


def fewest_steps(
    programs: CompiledTraining,
    config: TrainConfig,
    loss_of: LossOf,
    target: float,
    rates: Sequence[float],
) -> tuple[float, float]:
    """Steps to the target at the best of several learning rates, and that rate; ties: the first."""
    best, best_rate = math.inf, rates[0]
    for rate in rates:
        at_rate = dataclasses.replace(config, learning_rate=rate)
        steps = steps_to(programs, at_rate, loss_of, target, max_steps=best)
        if steps < best:
            best, best_rate = steps, rate
    return best, best_rate
