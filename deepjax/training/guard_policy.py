"""What a bad step is, and what follows from it."""

import dataclasses
from typing import Literal

OnNonfinite = Literal["halt", "skip", "rollback"]

MAX_SKIPS = 64  # capacity of the list of skipped steps


@dataclasses.dataclass(frozen=True)
class Policy:
    """Which steps are bad, and what to do after one."""

    on_nonfinite: OnNonfinite = "halt"
    max_skipped_steps: int = 10
    """Skipped steps after which training halts."""
    spike_sigmas: float = 0.0
    """A step is bad if its loss or gradient norm is so many standard deviations above the running
    mean; 0: never."""
