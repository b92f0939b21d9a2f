"""Which tasks are started again, by their exit code: the table of docs/launch.md."""

import dataclasses

from deepjax.command_line import EXIT_STOPPED
from deepjax.training.preemption import EXIT_HUNG

# Hung, or ended by a signal: 128 + its number. Invalid input (2), non-finite values (3) and errors
# of the code (1) would occur again.
RETRIED = (EXIT_HUNG, *range(129, 160))


@dataclasses.dataclass(frozen=True)
class RetryDecision:
    """What follows the end of an attempt."""

    again: bool
    failures: int
    """Attempts of this task that count, this one included."""


def after_exit(code: int, failures: int, retries: int, advanced: bool) -> RetryDecision:
    """Whether a task that did not finish is started again.

    failures: earlier attempts that count. advanced: whether this one saved a later checkpoint; if
    so, a stop by the scheduler (143), such as a time limit, does not count.
    """
    if code == EXIT_STOPPED and advanced:
        return RetryDecision(True, failures)
    return RetryDecision(code in RETRIED and failures < retries, failures + 1)
