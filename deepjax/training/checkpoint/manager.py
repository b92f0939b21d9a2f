"""Checkpoints over Orbax: saved asynchronously and atomically, verified before they are used.

A folder checkpoints/STEP holds Orbax's files and a manifest with the data position and the sha256
of every file. It is named STEP only when all of it is synced; before, and while it is deleted, it
is STEP.partial. In a bucket its manifest is written last (`bucket_store`).

`deepjax runs verify | digest | diff` inspects them.
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
from deepjax.paths import AnyPath, run_directory
from deepjax.training.checkpoint.host_state import on_host, put_like
from deepjax.training.checkpoint.inspect import (
    Position,
    Values,
    defects,
    differing_values,
    error_text,
    local_values,
    read_contents,
    read_tree,
    structure,
)
from deepjax.training.checkpoint.manifest import read_manifest, write_manifest
from deepjax.training.checkpoint.store import CheckpointStore, FolderStore, newest_valid
from deepjax.training.distributed.collectives import (
    all_or_none,
    error_of,
    on_primary,
    sync_errors,
)
from deepjax.training.step.state import TrainState

Verify = Literal["structure", "full"]
Warn = Callable[[str], None]


class Checkpoints:
    """The checkpoints of a run. At most one save runs at a time; a save that fails is a warning.

    The newest `keep_last` are kept, and the `keep_best` of the lowest metric. A save is verified:
    it is read again, its files must have the hashes of the manifest, and every leaf its path, type
    and shape. With `verify` "full" every value is compared bitwise too (of a state that is sharded
    over processes: those of process 0).
    """

    def __init__(
        self,
        run: AnyPath,
        keep_last: int = 2,
        keep_best: int = 0,
        warn: Warn = print,
        verify: Verify = "structure",
        store: CheckpointStore | None = None,
    ) -> None:
        """Open (or make) `run`/checkpoints and delete what interrupted saves left in it.

        store: another place for them. Raises InputError if it is not writable.
        """
        self._store = store or FolderStore(run_directory(run) / "checkpoints")
        self.folder = self._store.folder
        self._keep_last, self._keep_best = keep_last, keep_best
        self._warn, self._verify = warn, verify
        self._primary = jax.process_index() == 0
        on_primary(self._clear)
        for name in ("absl", "asyncio"):  # of a failed save `_failed` warns in one line
            logging.getLogger(name).addFilter(_not_of_failed_saves)
        self._orbax = _orbax(self._store)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._saving: tuple[int, Future[None]] | None = None

    def steps(self) -> list[int]:
        """Steps of the checkpoints, oldest first. Raises InputError where they cannot be listed."""
        try:
            return self._store.steps()
        except OSError as error:
            raise InputError(f"cannot list {self._store} ({error_text(error)})") from error

    def latest(self) -> int | None:
        """Step of the newest checkpoint, or None, as process 0 sees it."""
        newest = on_primary(lambda: next(reversed(self.steps()), -1))
        return None if newest < 0 else newest

    def save(self, state: TrainState, position: Position, metric: float | None = None) -> None:
        """Start an asynchronous save of the state and data position; no-op if the step is saved.

        Returns when the state is copied off the devices. `metric`: compared by keep_best, lower is
        better.
        """
        step = int(state.step)
        self.wait_until_finished()
        if self._has(step) is not False:
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

    def is_saving(self) -> bool:
        """Whether a save runs."""
        return self._saving is not None and not self._saving[1].done()

    def wait_until_finished(self) -> bool:
        """Wait for the running save, in all processes; False, after a warning, if it failed."""
        if self._saving is None:
            return True
        (step, future), self._saving = self._saving, None
        return self._on_all_processes(step, future.result)

    def save_last(self, state: TrainState, position: Position, metric: float | None = None) -> None:
        """Save and wait, and retry once; raises InputError if the state cannot be written."""
        for _ in range(2):
            self.save(state, position, metric)
            if self.wait_until_finished() and self._has(int(state.step)):
                return
        raise InputError(
            f"cannot write checkpoints in {self._store} (see above); "
            "free space or choose another --output-dir"
        )

    def digest(self, step: int) -> str:
        """The digest of a checkpoint, read from disk, as `deepjax runs digest` prints it.

        Empty in other processes than 0, and if that checkpoint is not the newest. Raises InputError
        if it cannot be read.
        """
        if not self._primary or self.steps()[-1:] != [step]:
            return ""
        self._open(step)
        return read_contents(self.folder.parent, step).digest

    def note_metric(self, step: int, metric: float) -> None:
        """Add the metric of a checkpoint that was measured after the save."""
        if not self._primary:
            return
        error = error_of(lambda: self._store.change_facts(step, metric=metric))
        if error is not None:
            self._warn(
                f"the metric of checkpoint {self._store.name(step)} could not be written "
                f"({error_text(error)}); training continues"
            )

    def restore(self, like: TrainState, before: int | None = None) -> tuple[TrainState, Position]:
        """The newest valid state, on the devices of `like`, and its data position.

        Corrupt checkpoints are moved to STEP.damaged, with a warning. `before`: roll back to before
        that step, and delete the checkpoints from it on. Raises InputError if no valid one is left,
        or it does not fit the state.
        """
        self.wait_until_finished()
        try:
            if before is not None:
                on_primary(lambda: self._delete_from_step(before))
            step = on_primary(lambda: newest_valid(self._store, self._warn))
        except OSError as error:
            raise _unwritable(self._store, error) from error
        if step < 0:
            raise InputError(
                f"{self._store} holds no valid checkpoint; delete it to start from step 0"
            )
        folder = sync_errors(lambda: self._open(step))
        facts = read_manifest(folder)
        try:
            state = self._read(folder, _storable(like))
        except Exception as error:  # valid, but not of this network
            raise InputError(
                f"checkpoint {self._store.name(step)} is of another network ({error_text(error)})"
            ) from error
        return dataclasses.replace(state, key=jax.random.wrap_key_data(state.key)), facts[
            "position"
        ]

    def close(self) -> None:
        """Wait for the running save and release the threads.

        Does not communicate with other processes, which may already have exited.
        """
        if self._saving is not None:
            step, future = self._saving
            self._saving = None
            if (error := error_of(future.result)) is not None:
                self._failed(step, error)
        self._thread.shutdown()
        self._orbax.close()

    def _clear(self) -> None:
        """Make the folder, and delete what interrupted saves left."""
        try:
            self._store.clear()
        except OSError as error:
            raise _unwritable(self._store, error) from error

    def _open(self, step: int) -> Path:
        """The folder of a checkpoint; raises InputError where it cannot be read."""
        try:
            return self._store.open(step)
        except OSError as error:
            raise InputError(f"cannot read {self._store.name(step)} ({error})") from error

    def _read(self, folder: Path, like: TrainState) -> TrainState:
        """The state in a folder, on the devices of `like`."""
        if self._store.is_shared or jax.process_count() == 1:
            abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
            return self._orbax.restore(folder / "state", abstract)
        return put_like(read_tree(folder), like)

    def _has(self, step: int) -> bool | None:
        """Whether a step is saved; None, after a warning, where that cannot be read."""

        def on_this() -> int:
            try:
                return int(step in self._store.steps())
            except OSError as error:
                self._warn_of_failure(step, error)
                return -1

        found = on_primary(on_this)
        return None if found < 0 else bool(found)

    def _on_all_processes(self, step: int, act: Callable[[], object]) -> bool:
        """Do a part of a save in all processes: if one fails, the save fails in all of them."""
        error = all_or_none(act)
        if error is not None:
            self._failed(step, error)
        return error is None

    def _make(self, partial: Path, saved: TrainState, values: Values) -> None:
        """Make the folder, and copy the values that verification will compare."""
        if self._primary:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            if self._verify == "full":
                values.update(local_values(saved))

    def _begin(self, partial: Path, saved: TrainState) -> None:
        if self._store.is_shared or jax.process_count() == 1:
            self._orbax.save(partial / "state", saved)
            return
        complete = on_host(saved)  # all processes gather; process 0 writes
        if self._primary:
            self._orbax.save(partial / "state", complete)

    def _finish(self, partial: Path, facts: dict[str, Any], values: Values) -> None:
        """In the thread: wait for Orbax, sync, verify, rename, delete old checkpoints."""
        self._orbax.wait_until_finished()
        if self._primary:
            write_manifest(partial, facts)
            if wrong := defects(partial) or differing_values(partial, values):
                raise OSError(f"read again it differs: {'; '.join(wrong[:3])}")
            self._store.commit(partial)
            if (error := error_of(self._delete_old)) is not None:
                self._warn(
                    f"old checkpoints in {self._store} could not be removed ({error_text(error)}); "
                    "training continues"
                )

    def _failed(self, step: int, error: Exception) -> None:
        with contextlib.suppress(Exception):  # the same error, which Orbax keeps until it is read
            self._orbax.wait_until_finished()
        if self._primary:  # what was written would keep a full disk full
            shutil.rmtree(self.folder / f"{step}.partial", ignore_errors=True)
        self._warn_of_failure(step, error)

    def _warn_of_failure(self, step: int, error: Exception) -> None:
        self._warn(
            f"checkpoint of step {step} could not be written to {self._store} "
            f"({error_text(error)}); training continues"
        )

    def _delete_old(self) -> None:
        steps = self.steps()
        metrics = {step: self._metric(step) for step in steps} if self._keep_best else {}
        ranked = sorted(
            (step for step, metric in metrics.items() if metric is not None),
            key=lambda s: (metrics[s], -s),
        )
        for step in set(steps) - set(steps[-self._keep_last :]) - set(ranked[: self._keep_best]):
            self._store.remove(step)

    def _metric(self, step: int) -> float | None:
        """The metric of a checkpoint; None if its manifest has none, or cannot be read."""
        try:
            return self._store.facts(step)["metric"]
        except ValueError:
            return None

    def _delete_from_step(self, before: int) -> None:
        """Delete the checkpoints from a step on."""
        for step in self.steps():
            if step >= before:
                self._store.remove(step)


def _orbax(store: CheckpointStore) -> ocp.StandardCheckpointer:
    """Of all processes for one folder; of each by itself for folders of their own."""
    if store.is_shared or jax.process_count() == 1:
        return ocp.StandardCheckpointer()
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process{me}"
    )
    return ocp.StandardCheckpointer(multiprocessing_options=alone)


def _storable(state: TrainState) -> TrainState:
    """The state with its typed key as raw words."""
    return dataclasses.replace(state, key=jax.random.key_data(state.key))


def _not_of_failed_saves(record: logging.LogRecord) -> bool:
    """False for the dozens of pages that Orbax logs of a failed write."""
    message = record.getMessage()
    return not any(
        part in message
        for part in ("never retrieved", "Handler Commit operations", "_SignalingThread.run()")
    )


def _unwritable(store: CheckpointStore, error: Exception) -> InputError:
    return InputError(
        f"cannot write checkpoints in {store} ({error_text(error)}); "
        "free space or choose another --output-dir"
    )
