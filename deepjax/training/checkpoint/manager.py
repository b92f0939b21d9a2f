"""Checkpoints over Orbax: written beside training, whole or not there, verified before a number of them is used.

A folder checkpoints/STEP holds Orbax's files and a manifest with the data position and the sha256 of every file. It gets its name
only when all of it is synced; until then, and while it is deleted, it is STEP.partial.

`python -m deepjax.training.checkpoint {list,verify,digest,diff} RUN [OTHER]` looks at them.
"""

import contextlib
import dataclasses
import logging
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import jax
import orbax.checkpoint as ocp

from deepjax.errors import InputError
from deepjax.io import sync_folder
from deepjax.paths import AnyPath, run_directory
from deepjax.training.checkpoint.inspect import (
    Position,
    Values,
    defects,
    differing_values,
    local_values,
    read_contents,
    reason,
    steps_of,
    structure,
)
from deepjax.training.checkpoint.manifest import (
    change_manifest,
    read_manifest,
    write_manifest,
)
from deepjax.training.distributed.collectives import all_processes_ok, on_primary
from deepjax.training.step.state import TrainState

Verify = Literal["structure", "full"]
Warn = Callable[[str], None]


class Checkpoints:
    """The checkpoints of a run. One save is under way at most; what goes wrong with it is said, and the next is made all the same.

    The newest `keep_last` are kept, and the `keep_best` of the lowest metric. A save counts only after what was written has been
    opened again: its files have the hashes of the manifest, and every leaf has the path, type and shape that it was to have; with
    `verify` "full" every value is compared too, bit by bit (of a state sharded over processes those that process 0 holds).
    """

    def __init__(
        self,
        run: AnyPath,
        keep_last: int = 2,
        keep_best: int = 0,
        warn: Warn = print,
        verify: Verify = "structure",
    ) -> None:
        """Open (or make) `run`/checkpoints and clear away what an interrupted save left; raises InputError if not writable."""
        self.folder = run_directory(run) / "checkpoints"
        self._keep_last, self._keep_best, self._warn, self._verify = (
            keep_last,
            keep_best,
            warn,
            verify,
        )
        self._primary = jax.process_index() == 0
        on_primary(self._clear)
        for name in ("absl", "asyncio"):
            logging.getLogger(name).addFilter(
                _not_of_failed_saves
            )  # which `_failed` tells in a line
        self._orbax = ocp.StandardCheckpointer()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._saving: tuple[int, Future[None]] | None = None

    def steps(self) -> list[int]:
        """Steps of the checkpoints on disk, oldest first."""
        return steps_of(self.folder)

    def latest(self) -> int | None:
        """Step of the newest checkpoint on disk, or None; as the first process sees it."""
        newest = on_primary(lambda: next(reversed(self.steps()), -1))
        return None if newest < 0 else newest

    def save(self, state: TrainState, position: Position, metric: float | None = None) -> None:
        """Start to write the state and the data position under the state's step; one that is there already is left alone.

        Returns when the state is copied off the devices. `metric`: what keep_best compares, lower is better.
        """
        step = int(state.step)
        self.wait_until_finished()
        if self._has(step):
            return
        partial, saved = self.folder / f"{step}.partial", _storable(state)
        facts = {
            "step": step,
            "position": position,
            "metric": metric,
            "time": time.time(),
            "leaves": structure(saved),
        }
        values: Values = {}
        if self._on_all_processes(
            step, lambda: self._make(partial, saved, values)
        ) and self._on_all_processes(step, lambda: self._begin(partial, saved)):
            self._saving = step, self._thread.submit(self._finish, partial, facts, values)

    def wait_until_finished(self) -> bool:
        """Wait for the save under way, in all processes; warn if it failed. Returns whether all is well."""
        if self._saving is None:
            return True
        (step, future), self._saving = self._saving, None
        return self._on_all_processes(step, future.result)

    def save_last(self, state: TrainState, position: Position, metric: float | None = None) -> None:
        """Write the state and wait for it, a second time if need be; raises InputError when it cannot be written."""
        for _ in range(2):
            self.save(state, position, metric)
            if self.wait_until_finished() and self._has(int(state.step)):
                return
        raise InputError(
            f"cannot write checkpoints in {self.folder} (see above); free space or choose another --output-dir"
        )

    def digest(self, step: int) -> str:
        """The digest of the checkpoint of a step as `python -m deepjax.training.checkpoint digest` gives it, read from the disk.

        Empty in other processes than 0, and where that checkpoint is not the newest. Raises InputError when it cannot be read.
        """
        return (
            read_contents(self.folder.parent, step).digest
            if self._primary and self.steps()[-1:] == [step]
            else ""
        )

    def note_metric(self, step: int, metric: float) -> None:
        """Tell a checkpoint the metric that was measured after it was saved."""
        folder = self.folder / str(step)
        if (
            self._primary
            and (error := _error_of(lambda: change_manifest(folder, metric=metric))) is not None
        ):
            self._warn(
                f"the metric of checkpoint {folder} could not be written ({reason(error)}); training goes on"
            )

    def restore(self, like: TrainState, before: int | None = None) -> tuple[TrainState, Position]:
        """The newest state that is whole, on the devices of `like`, and its data position.

        Damaged ones are named in a warning and moved aside, to STEP.damaged. `before`: go back behind that step; what was saved at
        it or later is an abandoned branch and is removed. Raises InputError when no whole one is left.
        """
        self.wait_until_finished()
        try:
            if before is not None:
                on_primary(lambda: self._delete_from_step(before))
            step = on_primary(self._look)
        except OSError as error:
            raise _unwritable(self.folder, error) from error
        if step < 0:
            raise InputError(
                f"{self.folder} holds no checkpoint that is whole; delete the folder to start anew"
            )
        facts = read_manifest(self.folder / str(step))
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _storable(like))
        try:
            state = self._orbax.restore(self.folder / str(step) / "state", abstract)
        except Exception as error:  # whole, and yet not what this network needs
            raise InputError(
                f"checkpoint {self.folder / str(step)} is of another network ({reason(error)})"
            ) from error
        return dataclasses.replace(state, key=jax.random.wrap_key_data(state.key)), facts[
            "position"
        ]

    def close(self) -> None:
        """Wait for the save under way and release the threads; asks nothing of other processes, which may be gone."""
        if self._saving is not None:
            step, future = self._saving
            self._saving = None
            if (error := _error_of(future.result)) is not None:
                self._failed(step, error)
        self._thread.shutdown()
        self._orbax.close()

    def _clear(self) -> None:
        """Make the folder, and take away what an interrupted save left."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in self.folder.glob("*.partial"):
                shutil.rmtree(left)
        except OSError as error:
            raise _unwritable(self.folder, error) from error

    def _has(self, step: int) -> bool:
        return bool(on_primary(lambda: step in self.steps()))

    def _on_all_processes(self, step: int, act: Callable[[], object]) -> bool:
        """A part of a save, done in every process; if one cannot, the save has failed in all, and none waits for the others."""
        error = _error_of(act)
        if all_processes_ok(error is None):
            return True
        self._failed(step, error or OSError("another process could not"))
        return False

    def _make(self, partial: Path, saved: TrainState, values: Values) -> None:
        """The folder, and a copy of what is to be compared with it."""
        if self._primary:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            if self._verify == "full":
                values.update(local_values(saved))

    def _begin(self, partial: Path, saved: TrainState) -> None:
        self._orbax.save(partial / "state", saved)

    def _finish(self, partial: Path, facts: dict[str, Any], values: Values) -> None:
        """In the thread: once Orbax has written, sync, open it again, name it, and let go of what need not be kept."""
        self._orbax.wait_until_finished()
        if self._primary:
            write_manifest(partial, facts)
            if wrong := defects(partial) or differing_values(partial, values):
                raise OSError(f"read again it differs: {'; '.join(wrong[:3])}")
            partial.rename(partial.with_suffix(""))
            sync_folder(self.folder)
            if (
                error := _error_of(self._delete_old)
            ) is not None:  # no fault of the save, which is whole
                self._warn(
                    f"old checkpoints in {self.folder} could not be removed ({reason(error)}); training goes on"
                )

    def _failed(self, step: int, error: Exception) -> None:
        with contextlib.suppress(
            Exception
        ):  # the same error again, which Orbax keeps until it is collected
            self._orbax.wait_until_finished()
        if self._primary:
            shutil.rmtree(
                self.folder / f"{step}.partial", ignore_errors=True
            )  # it would keep a full disk full
        self._warn(
            f"checkpoint of step {step} could not be written to {self.folder} ({reason(error)}); training goes on"
        )

    def _delete_old(self) -> None:
        steps = self.steps()
        metrics = (
            {step: _metric(self.folder / str(step)) for step in steps} if self._keep_best else {}
        )
        ranked = sorted(
            (step for step, metric in metrics.items() if metric is not None),
            key=lambda s: (metrics[s], -s),
        )
        for step in set(steps) - set(steps[-self._keep_last :]) - set(ranked[: self._keep_best]):
            _remove(self.folder / str(step))

    def _delete_from_step(self, before: int) -> None:
        """Remove a branch that is not gone on with."""
        for step in self.steps():
            if step >= before:
                _remove(self.folder / str(step))

    def _look(self) -> int:
        """Step of the newest whole one, or -1; damaged ones are moved aside."""
        for step in reversed(self.steps()):
            wrong = defects(self.folder / str(step))
            if not wrong:
                return step
            aside = self.folder / f"{step}.damaged"
            shutil.rmtree(aside, ignore_errors=True)
            (self.folder / str(step)).rename(aside)
            self._warn(
                f"checkpoint {self.folder / str(step)} is damaged: {'; '.join(wrong[:3])}; moved to {aside.name}"
            )
        return -1


def _remove(folder: Path) -> None:
    """Delete a checkpoint; interrupted, it leaves no folder that looks like one."""
    partial = folder.with_name(f"{folder.name}.partial")
    folder.rename(partial)
    shutil.rmtree(partial)


def _storable(state: TrainState) -> TrainState:
    """Typed keys are stored as their raw words."""
    return dataclasses.replace(state, key=jax.random.key_data(state.key))


def _metric(folder: Path) -> float | None:
    """The metric of a checkpoint; None where its manifest tells none, or cannot be read."""
    try:
        return read_manifest(folder)["metric"]
    except ValueError:
        return None


def _error_of(act: Callable[[], object]) -> Exception | None:
    """The error of an act, or None: Orbax and tensorstore raise their own kinds for a disk that is full or gone."""
    try:
        act()
    except Exception as error:
        return error
    return None


def _not_of_failed_saves(record: logging.LogRecord) -> bool:
    """Of a failed write Orbax logs dozens of pages: each thread's error, and of each future that nobody collected."""
    message = record.getMessage()
    return not any(
        part in message
        for part in ("never retrieved", "Handler Commit operations", "_SignalingThread.run()")
    )


def _unwritable(folder: Path, error: Exception) -> InputError:
    return InputError(
        f"cannot write checkpoints in {folder} ({reason(error)}); free space or choose another --output-dir"
    )
