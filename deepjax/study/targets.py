"""How many steps a training needs to reach a loss, by batch size, and the critical batch size that the numbers of steps tell.

McCandlish, Kaplan, Amodei et al., "An empirical model of large-batch training", 2018 (arXiv:1812.06162), sections 2.2 and 3.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from deepjax.analysis import cross_entropy
from deepjax.study.finetune import iterate_training
from deepjax.training import CompiledTraining, TrainConfig

LossOf = Callable[[Any], float]  # parameters -> loss


def loss_on(model: nn.Module, batch: Any) -> LossOf:
    """The loss of a network without statistics on one batch, as a function of its parameters; compiled once."""
    compute = jax.jit(
        lambda params, batch: cross_entropy(model.apply({"params": params}, batch["image"]), batch)
    )  # pyright: ignore[reportArgumentType]
    return lambda params: float(compute(params, batch))


def steps_to(
    programs: CompiledTraining,
    config: TrainConfig,
    loss_of: LossOf,
    target: float,
    most: float = math.inf,
) -> float:
    """Steps until the loss is at the target or below, looked at every 10 % of the steps so far; infinite if not within `most`.

    A training whose loss is not finite has not reached it.
    """
    look = 1
    for step, state in iterate_training(programs, config):
        if step > most:
            return math.inf
        if step < look:
            continue
        loss = loss_of(state.params)
        if loss <= target or not math.isfinite(loss):
            return step if loss <= target else math.inf
        look = step + max(1, step // 10)
    return math.inf


def fewest_steps(
    programs: CompiledTraining,
    config: TrainConfig,
    loss_of: LossOf,
    target: float,
    rates: Sequence[float],
) -> tuple[float, float]:
    """Steps to the target at the best of several learning rates, and that rate; the first of equals."""
    best, chosen = math.inf, rates[0]
    for rate in rates:
        steps = steps_to(
            programs, dataclasses.replace(config, learning_rate=rate), loss_of, target, most=best
        )
        if steps < best:
            best, chosen = steps, rate
    return best, chosen


@dataclasses.dataclass(frozen=True)
class Hyperbola:
    """(S / S_min - 1) (E / E_min - 1) = 1 for S steps on E = B S examples; that is S = S_min + E_min / B."""

    s_min: float
    """Steps that no batch size goes below."""
    e_min: float
    """Examples that no batch size goes below."""

    @property
    def critical(self) -> float:
        """Batch size that needs twice as many steps and twice as many examples as the least: E_min / S_min."""
        return self.e_min / self.s_min

    def steps(self, batch: float) -> float:
        """Steps at a batch size."""
        return self.s_min + self.e_min / batch


def fit_hyperbola(batches: Sequence[float], steps: Sequence[float]) -> Hyperbola:
    """By least squares of log S. Raises ValueError for fewer than three batch sizes, and steps that are not finite."""
    import scipy.optimize  # here, as its half second would be every script's

    if len(batches) < 3 or not np.all(np.isfinite(steps)):
        raise ValueError(
            f"a hyperbola needs three batch sizes or more that reach the target, given {batches}: {steps}"
        )
    b, s = np.asarray(batches, float), np.asarray(steps, float)

    def residuals(logs: np.ndarray) -> np.ndarray:
        return np.log(np.exp(logs[0]) + np.exp(logs[1]) / b) - np.log(s)

    found = scipy.optimize.least_squares(residuals, np.log([s.min(), (s * b).min()])).x
    return Hyperbola(*map(float, np.exp(found)))
