"""The end of a run that a stop signal preempts: the state is saved, and the run can be resumed."""

import dataclasses
from typing import NoReturn

from deepjax.errors import Stopped
from deepjax.training.checkpoint.manager import Checkpoints
from deepjax.training.metrics.run_log import RunLog
from deepjax.training.preemption import PreemptionSignal
from deepjax.training.run_directory.run_result import DIGEST_CHARACTERS
from deepjax.training.step.state import TrainState
from deepjax.training.steps import Steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class GracefulStop:
    """Raises Stopped when the run is preempted."""

    preempted: PreemptionSignal
    checkpoints: Checkpoints
    log: RunLog
    total_steps: int

    def stop_if_preempted(self, done: int, what: str) -> None:
        """Ask the signal, and end a preempted run; `what` says whether its state is saved."""
        if self.preempted():
            self.stop(done, what)

    def save_and_stop(self, state: TrainState, steps: Steps, done: int) -> NoReturn:
        """Save the state after so many steps and end the run."""
        self.log.flush()
        self.checkpoints.save_last(state, steps.get_state())
        self.stop(done, "saved")

    def stop(self, done: int, what: str) -> NoReturn:
        """End the run: raise Stopped with the step and the digest of its checkpoint."""
        digest = self.checkpoints.digest(done) if done else ""
        what += f" (digest {digest[:DIGEST_CHARACTERS]})" if digest else ""
        where = f"after step {done} of {self.total_steps}, {what}"
        where = where if done else "before the first step"
        raise Stopped(f"stopped by {self.preempted.signal.name} {where}; the same command resumes")
