"""The cost of networks: parameters and multiply-adds of arms, time and memory of a step."""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from deepjax.analysis import count_macs, count_params, init_variables
from deepjax.study.arms.arm import TrainedArm
from deepjax.training.network import model_from


@dataclasses.dataclass(frozen=True)
class NetworkCost:
    """Trainable parameters, and multiply-adds of one image in evaluation."""

    params: int
    """Auxiliary heads included, where the network has them."""
    macs: int
    """Of convolutions and linear layers."""


def network_cost(arm: TrainedArm) -> NetworkCost:
    """The exact cost of an arm's network, by tracing it."""
    return _counted(model_from(arm.config, arm.make), arm.config.input_shape)


@functools.cache  # tracing takes seconds, and the verdicts, the figures and the tables ask for it
def _counted(model: nn.Module, shape: tuple[int, int, int]) -> NetworkCost:
    return NetworkCost(count_params(model, shape), count_macs(model, shape))


class TrainingStep:
    """A compiled forward and backward pass of a module, to parameters and input.

    The loss is the mean square of its output on normal noise of this shape, batch included.
    """

    def __init__(self, model: nn.Module, shape: tuple[int, ...], seed: int) -> None:
        init_key, key = jax.random.split(jax.random.key(seed))
        self._x = jax.random.normal(key, shape)
        self._variables = init_variables(model, init_key, self._x.shape)

        def loss(variables: Any, x: Array) -> Array:
            maps: Any = model.apply(variables, x)
            return jnp.mean(jnp.square(maps))

        step = jax.jit(jax.grad(loss, argnums=(0, 1)))
        self._compiled = step.lower(self._variables, self._x).compile()
        plan: Any = self._compiled.memory_analysis()
        self.memory_bytes = int(
            plan.argument_size_in_bytes
            + plan.output_size_in_bytes
            + plan.temp_size_in_bytes
            - plan.alias_size_in_bytes
        )
        """Arguments, results and temporary memory, as the compiler plans them."""

    def __call__(self) -> None:
        """Run it once and wait for its end."""
        jax.block_until_ready(self._compiled(self._variables, self._x))


def median_seconds(steps: Mapping[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Median time of each, in interleaved rounds so that other load hits all alike.

    One round more is run first, which does not count.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats + 1):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(each[1:]) for name, each in times.items()}
