"""How the loop takes steps: one at a time from a stream of batches, or many on resident data."""

import time
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from deepjax.data import EncodedSplit
from deepjax.training.build import CompiledTraining
from deepjax.training.config import TrainConfig
from deepjax.training.distributed.collectives import on_primary, sync_errors
from deepjax.training.input_pipeline import BatchStream, DeviceBatch
from deepjax.training.metrics.loop_clock import LoopClock
from deepjax.training.metrics.step_log import StepMetrics
from deepjax.training.resident import ResidentTraining
from deepjax.training.step.state import TrainState

Position = dict[str, Any]
SECONDS = 1.0  # of several steps at once: signals, progress and logs wait for their end


class Steps(Protocol):
    """Takes the steps of a run in order, and knows its position in the data."""

    def batch(self, step: int) -> DeviceBatch:
        """The batch of the next step (from 0), or of the last one."""
        ...

    def take(self, state: TrainState, done: int, most: int) -> tuple[TrainState, StepMetrics]:
        """The state after one step more than `done` or several, at most `most` in all."""
        ...

    def get_state(self) -> Position:
        """The position in the data after the last step."""
        ...

    def seek(self, position: Position, done: int) -> None:
        """Continue from a position of `get_state`, after so many steps."""
        ...


class StreamedSteps:
    """One step at a time, from batches that are read ahead."""

    def __init__(self, compiled: CompiledTraining, batches: BatchStream, clock: LoopClock) -> None:
        self._compiled, self._batches, self._clock = compiled, batches, clock
        self._taken: dict[int, DeviceBatch] = {}
        self.get_state = batches.get_state

    def batch(self, step: int) -> DeviceBatch:
        """The batch of the next step (from 0), or of the last one."""
        if step not in self._taken:
            self._taken = {step: self._next()}
        return self._taken[step]

    def take(self, state: TrainState, done: int, most: int) -> tuple[TrainState, StepMetrics]:
        """The state after the next step."""
        state, metrics = self._compiled.train_step_at(done)(state, self.batch(done))
        return state, StepMetrics(done + 1, 1, metrics)

    def seek(self, position: Position, done: int) -> None:
        """Continue from a position of `get_state`, after so many steps."""
        self._batches.seek(position, done)
        self._taken = {}

    def _next(self) -> DeviceBatch:
        """The next batch. If an encoded one cannot be read in one process, all processes raise."""

        def read() -> DeviceBatch:
            with self._clock.part("input"):
                return next(self._batches)

        if isinstance(self._compiled.train_split, EncodedSplit):
            with self._clock.part("device"):  # the agreement waits for the other processes
                return sync_errors(read)
        return read()


class ResidentSteps:
    """Several steps at a time, as many as take a second, on data that are on the devices.

    How many makes no difference to the state: the program is the same.
    """

    def __init__(
        self, compiled: CompiledTraining, resident: ResidentTraining, config: TrainConfig
    ) -> None:
        self._compiled, self._resident, self._config = compiled, resident, config
        self._done, self._rate = 0, 0.0

    def batch(self, step: int) -> DeviceBatch:
        """The batch of any step (from 0)."""
        ids = jnp.asarray(self._compiled.example_ids(self._config, step))
        return self._resident.batch(self._resident.data, ids)

    def take(self, state: TrainState, done: int, most: int) -> tuple[TrainState, StepMetrics]:
        """The state after several steps, which are waited for."""
        began = time.perf_counter()
        affordable = on_primary(lambda: max(1, int(self._rate * SECONDS)))
        plan = self._compiled.plan
        size = plan.image_size(done)
        count = min(most, affordable, self._resident.capacity, plan.steps_left_of_part(done))
        ids = np.zeros((self._resident.capacity, self._config.batch_size), np.int32)
        for row, step in enumerate(range(done, done + count)):
            ids[row] = self._compiled.example_ids(self._config, step)
        state, metrics = self._resident.take_by_size[size](
            state, self._resident.data, self._compiled.partitioner.put_ids(ids), np.int32(count)
        )
        jax.block_until_ready(metrics["loss"])
        self._rate = count / (time.perf_counter() - began)
        self._done = done + count
        return state, StepMetrics(done + 1, count, metrics)

    def get_state(self) -> Position:
        """The position in the data after the last step, as of a stream."""
        return {"next_index": self._done}

    def seek(self, position: Position, done: int) -> None:
        """Continue after so many steps."""
        self._done = done
