"""Training from given weights, and errors of given weights: what a run does not do, which starts from drawn ones."""

import collections
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from deepjax.data.loader import train_batches
from deepjax.training import CompiledTraining, RunOptions, TrainConfig, compile_training
from deepjax.training.evaluator import Evaluator
from deepjax.training.step.state import TrainState


def programs_of(config: TrainConfig, data_dir: str | None = None) -> CompiledTraining:
    """What the configuration compiles to, once in a process; the rate and the seed are not in it."""
    return _programs(dataclasses.replace(config, learning_rate=0.1, seed=0), data_dir)


@functools.lru_cache(maxsize=4)
def _programs(config: TrainConfig, data_dir: str | None) -> CompiledTraining:
    return compile_training(config, RunOptions(data_dir=data_dir))


def initial_variables(config: TrainConfig, data_dir: str | None = None) -> dict[str, Any]:
    """The variables that a run of this configuration starts from."""
    state = programs_of(config, data_dir).fresh_state(config)
    return {"params": state.params, "batch_stats": state.batch_stats}


def iterate_training(
    programs: CompiledTraining, config: TrainConfig, start: TrainState | None = None
) -> Iterator[tuple[int, TrainState]]:
    """Steps done and the state, before the first step and after each, from a drawn state or from `start`.

    The next step donates the state: use it before.
    """
    state = programs.fresh_state(config) if start is None else start
    yield 0, state
    for step, batch in enumerate(
        train_batches(programs.train_split, config.batch_size, config.seed, config.total_steps), 1
    ):
        state, _ = programs.train_step(state, programs.partitioner.put_batch(batch))
        yield step, state


def finetune(config: TrainConfig, variables: Any, data_dir: str | None = None) -> dict[str, Any]:
    """The variables after the training that the configuration describes, from these ones instead of from drawn ones."""
    programs = programs_of(config, data_dir)
    start = {
        name: jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), variables[name])
        for name in ("params", "batch_stats")
    }
    first = programs.partitioner.put_state(
        programs.fresh_state(config).replace(**start)
    )  # copied, since the step donates its state
    _, last = collections.deque(iterate_training(programs, config, first), maxlen=1).pop()
    return {"params": last.params, "batch_stats": last.batch_stats}


def train_error(config: TrainConfig, variables: Any, data_dir: str | None = None) -> float:
    """Fraction of wrong answers over all training images, in evaluation mode."""
    evaluate = Evaluator(programs_of(config, data_dir))
    evaluation = evaluate(variables["params"], variables["batch_stats"], "train")
    return evaluation.row("train")["train_error"]
