"""What the processes of a run agree on, so that none waits for the others at a place to which they never come.

Every function here must be called by all processes equally often and in the same order.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from deepjax.errors import InputError

Result = TypeVar("Result")


def all_processes_ok(here: bool) -> bool:
    """Whether all is well in every process."""
    if jax.process_count() == 1:
        return here
    return bool(np.all(multihost_utils.process_allgather(np.asarray(here, np.int32))))


def on_primary(act: Callable[[], int | None]) -> int:
    """The first process acts, and all get its answer (None: 0). Where it raises all raise: it the error, the others InputError."""
    if jax.process_count() == 1:
        return act() or 0
    answer, error = 0, None
    if jax.process_index() == 0:
        try:
            answer = act() or 0
        except (
            Exception
        ) as raised:  # whatever it is, the others must hear of it before it goes on its way
            error = raised
    told = multihost_utils.broadcast_one_to_all(np.asarray([answer, error is not None], np.int32))
    if error is not None:
        raise error
    if told[1]:
        raise InputError("the first process could not go on; it says why")
    return int(told[0])


def sync_errors(act: Callable[[], Result]) -> Result:
    """What each process's own `act` gives. Where it raises InputError in any of them, all raise the first such error."""
    try:
        given, wrong = act(), None
    except InputError as error:
        given, wrong = None, error
    if all_processes_ok(wrong is None):
        return given  # pyright: ignore[reportReturnType]  # of `act`, as nothing is wrong
    raise InputError(next(filter(None, allgather_strings(str(wrong or ""))))) from wrong


def allgather_strings(words: str) -> list[str]:
    """What each process says, in their order."""
    if jax.process_count() == 1:
        return [words]
    mine = np.frombuffer(words.encode(), np.uint8)
    longest = int(np.max(multihost_utils.process_allgather(np.asarray(len(mine), np.int32))))
    rows = multihost_utils.process_allgather(np.pad(mine, (0, longest - len(mine))))
    return [bytes(row).rstrip(b"\0").decode() for row in np.asarray(rows)]
