"""What follows a bad step: a logged skip, a rollback to a checkpoint, or the end of the run."""

import dataclasses
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import numpy as np

from deepjax.errors import NonFiniteError
from deepjax.training.build import CompiledTraining
from deepjax.training.checkpoint.manager import Checkpoints
from deepjax.training.config import TrainConfig
from deepjax.training.decode_errors import DecodeErrorLog
from deepjax.training.metrics.diagnosis import explain
from deepjax.training.metrics.run_log import RunLog
from deepjax.training.step.state import TrainState
from deepjax.training.steps import Steps

IDS_SHOWN = 8  # training images that a message names


@dataclasses.dataclass(frozen=True)
class GuardReading:
    """What the host reads of the guard at a sync point."""

    halted_at: int | None
    """The bad step (from 0) at which training halted."""
    skipped: int
    loss: float


@dataclasses.dataclass(frozen=True)
class Recovery:
    """Reads the guard of a run and acts on it; all processes do so together."""

    config: TrainConfig
    compiled: CompiledTraining
    checkpoints: Checkpoints
    log: RunLog
    decode_errors: DecodeErrorLog
    say: Callable[[str], None]
    start: Callable[[], TrainState]
    """The state before the first step."""

    def read_guard(self, state: TrainState, loss: jax.Array, done: int) -> GuardReading:
        """Wait for the step, read the guard and log the skipped steps that are not logged yet."""
        halted, skipped, loss = jax.device_get((state.guard.halted, state.guard.skipped, loss))
        for step in skipped[(skipped >= 0) & (skipped < done)].tolist():
            if not self.log.has("skipped", step + 1):
                images = self.compiled.example_ids(self.config, step).tolist()
                self.log.write({"kind": "skipped", "step": step + 1, "images": images})
        halted_at = int(halted) if halted >= 0 else None
        return GuardReading(halted_at, int(np.sum(skipped >= 0)), float(loss))

    def rollback(self, state: TrainState, steps: Steps, halted_at: int) -> TrainState:
        """The state of the newest checkpoint before a bad step, which its guard will skip.

        Raises NonFiniteError if the configuration does not allow a rollback, or not another one.
        """
        policy, skipped = self.config.policy, state.guard.skipped
        count = int(np.sum(jax.device_get(skipped) >= 0))
        if policy.on_nonfinite != "rollback" or count >= policy.max_skipped_steps:
            self._halt(state, halted_at, count)
        position = self.compiled.batches(self.config).get_state()
        self.checkpoints.wait_until_finished()
        if self.checkpoints.latest() is None:
            restored = self.start()
        else:
            fresh = self.compiled.fresh_state(self.config)
            restored, position = self.checkpoints.restore(fresh, before=halted_at + 1)
        done = int(restored.step)
        steps.seek(position, done)
        guard = restored.guard.replace(skipped=skipped.at[count].set(halted_at))
        self.log.rewind(done)
        self.decode_errors.rewind(done)
        self.log.write({"kind": "rollback", "step": done, "bad_step": halted_at + 1})
        self.say(
            f"step {halted_at + 1} was bad; back to step {done}, and on without it "
            f"({count + 1} of {policy.max_skipped_steps} such steps)"
        )
        shardings = self.compiled.partitioner.state_shardings(guard)
        return restored.replace(guard=jax.device_put(guard, shardings))

    def _halt(self, state: TrainState, halted_at: int, skipped: int) -> NoReturn:
        self.log.write({"kind": "halted", "step": halted_at + 1})
        ids = self.compiled.example_ids(self.config, halted_at)
        batch: Any = self.compiled.batch_at(self.config, halted_at)
        reason = explain(self.compiled, state, batch, ids)
        shown = ", ".join(map(str, ids[:IDS_SHOWN].tolist()))
        shown += ", ..." if len(ids) > IDS_SHOWN else ""
        spent = f"; {skipped} steps were skipped before it" if skipped else ""
        raise NonFiniteError(
            f"step {halted_at + 1} had {reason} (training images {shown}){spent}; "
            "the last checkpoint is from before it. "
            f"Try a lower learning_rate than {self.config.learning_rate:g}, or on_nonfinite='skip'"
        )


def restore_or_init(
    config: TrainConfig,
    compiled: CompiledTraining,
    checkpoints: Checkpoints,
    steps: Steps,
    start: Callable[[], TrainState],
) -> TrainState:
    """The state of the newest checkpoint, or a new one; moves the data to its position.

    start: the state before the first step.
    """
    if checkpoints.latest() is None:
        return start()
    state, position = checkpoints.restore(compiled.fresh_state(config))
    steps.seek(position, int(state.step))
    return state
