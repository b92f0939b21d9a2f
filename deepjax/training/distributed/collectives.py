"""Collectives for several processes, written so that none waits in one that another never enters.

All processes must call these functions equally often and in the same order.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from deepjax.errors import InputError

Result = TypeVar("Result")


def all_processes_ok(here: bool) -> bool:
    """Whether a condition holds in every process."""
    if jax.process_count() == 1:
        return here
    return bool(np.all(multihost_utils.process_allgather(np.asarray(here, np.int32))))


def on_primary(act: Callable[[], int | None]) -> int:
    """Run `act` on process 0 and broadcast its result (None: 0).

    If it raises, every process raises: process 0 the original error, the others InputError.
    """
    if jax.process_count() == 1:
        return act() or 0
    answer, error = 0, None
    if jax.process_index() == 0:
        try:
            answer = act() or 0
        except Exception as raised:  # of any kind: the others must learn of it first
            error = raised
    sent = np.asarray([answer, error is not None], np.int32)
    received = multihost_utils.broadcast_one_to_all(sent)
    if error is not None:
        raise error
    if received[1]:
        raise InputError("process 0 failed; its error says why")
    return int(received[0])


def sync_errors(act: Callable[[], Result]) -> Result:
    """Run `act` in every process; if any raises InputError, all raise the first such error."""
    try:
        result, error = act(), None
    except InputError as raised:
        result, error = None, raised
    if all_processes_ok(error is None):
        return result  # pyright: ignore[reportReturnType]  # of `act`, as it did not raise
    raise InputError(next(filter(None, allgather_strings(str(error or ""))))) from error


def all_or_none(act: Callable[[], object]) -> Exception | None:
    """Run `act` in every process; None if it succeeded in all of them, else an error in each."""
    error = error_of(act)
    if all_processes_ok(error is None):
        return None
    return error or OSError("another process could not")


def error_of(act: Callable[[], object]) -> Exception | None:
    """The error of a call, of any kind, or None."""
    try:
        act()
    except Exception as error:  # Orbax and tensorstore raise their own kinds for a full disk
        return error
    return None


def allgather_strings(text: str) -> list[str]:
    """The text of every process, in their order."""
    if jax.process_count() == 1:
        return [text]
    mine = np.frombuffer(text.encode(), np.uint8)
    longest = int(np.max(multihost_utils.process_allgather(np.asarray(len(mine), np.int32))))
    rows = multihost_utils.process_allgather(np.pad(mine, (0, longest - len(mine))))
    return [bytes(row).rstrip(b"\0").decode() for row in np.asarray(rows)]
