"""The mode in which an instrument runs a network: EVAL, TRAIN or Ghost(k)."""

import dataclasses
from typing import Any

from deepjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Mode:
    """Evaluation or training, and the examples that share batch statistics in training."""

    train: bool
    """Whether batch norm uses batch statistics and dropout is active."""
    ghost: int | None = None
    """Examples of a ghost batch; None: each batch is one."""

    def __repr__(self) -> str:
        """The expression that creates it."""
        if self.ghost is not None:
            return f"Ghost({self.ghost})"
        return "TRAIN" if self.train else "EVAL"

    @property
    def statistics(self) -> str:
        """The kind of batch statistics, for a figure's title."""
        if self.ghost is not None:
            return f"statistics of {self.ghost} examples"
        return "batch statistics" if self.train else "running statistics"


EVAL = Mode(train=False)
"""Evaluation: stored batch statistics, no dropout."""
TRAIN = Mode(train=True)
"""Training: statistics of each batch, which are functions of the parameters; dropout active."""


def Ghost(examples: int) -> Mode:
    """Training on ghost batches of consecutive examples.

    Each has its own batch statistics and random streams. Raises InputError for an `examples` that
    is not an integer from 1 up. Source: Hoffer, Hubara and Soudry 2017 (arXiv:1705.08741).
    """
    if not isinstance(examples, int) or isinstance(examples, bool) or examples < 1:
        raise InputError(f"Ghost has {examples!r} examples; allowed: an integer from 1 up")
    return Mode(train=True, ghost=examples)


def require_mode(mode: Any) -> Mode:
    """The mode; raises InputError for anything else, such as a boolean."""
    if isinstance(mode, Mode):
        return mode
    raise InputError(
        f"mode is {mode!r}; allowed: EVAL, TRAIN or Ghost(examples), from deepjax.analysis"
    )
