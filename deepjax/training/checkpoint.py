"""Checkpoints: Orbax underneath, one folder a step, the data position beside the state.

`python -m deepjax.training.checkpoint digest RUN` prints one sha256 over everything that a run carries on from.
"""

import contextlib
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp
import tyro

from deepjax.errors import InputError
from deepjax.training.state import TrainState

Position = dict[str, Any]  # what a Grain iterator's get_state returns


class Checkpoints:
    """The checkpoints of a run. Saving is atomic: a step's folder is there whole or not at all."""

    def __init__(self, run: Path, keep: int = 2) -> None:
        """Open (or make) `run`/checkpoints and clear away what an interrupted save left; raises InputError if not writable."""
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            enable_async_checkpointing=False,
            create=True,
        )
        self.folder = (run / "checkpoints").absolute()
        with _as_input_error(self.folder):
            if jax.process_index() == 0:
                for left in self.folder.glob("*.orbax-checkpoint-tmp*"):  # Orbax's own clean-up passes over unmarked ones
                    shutil.rmtree(left)
            self._manager = ocp.CheckpointManager(self.folder, options=options)

    def latest(self) -> int | None:
        """Step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, position: Position) -> None:
        """Write the state and the data position under the state's step; a step that is there already is left alone."""
        step = int(state.step)
        if step == self.latest():
            return
        items = ocp.args.Composite(state=ocp.args.StandardSave(_storable(state)), data=ocp.args.JsonSave(position))
        with _as_input_error(self.folder):
            self._manager.save(step, args=items, force=True)
            self._manager.wait_until_finished()

    def restore(self, like: TrainState) -> tuple[TrainState, Position]:
        """The newest state, on the devices of `like`, and its data position; raises InputError when it is damaged."""
        step = self.latest()
        if step is None:
            raise InputError(f"{self.folder} holds no checkpoint")
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _storable(like))
        items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore())
        try:
            restored = self._manager.restore(step, args=items)
        except Exception as error:  # tensorstore, msgpack and Orbax each raise their own kinds for damaged files
            raise _damaged(self.folder / str(step), error) from error
        state = restored["state"]
        key = jax.random.wrap_key_data(state.key)
        return dataclasses.replace(state, key=key), restored["data"]

    def close(self) -> None:
        """Release Orbax's threads."""
        self._manager.close()


def _damaged(folder: Path, error: Exception) -> InputError:
    reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return InputError(f"checkpoint {folder} cannot be restored ({reason}); delete that folder to use an older one")


def _storable(state: TrainState) -> TrainState:
    """Typed keys are stored as their raw words."""
    return dataclasses.replace(state, key=jax.random.key_data(state.key))


@contextlib.contextmanager
def _as_input_error(folder: Path) -> Iterator[None]:
    """A full or read-only disk is the user's to mend: say so in a line."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise InputError(f"cannot write checkpoints in {folder} ({reason}); free space or choose another --out") from error


def digest(run: Path) -> tuple[int, str]:
    """Step and sha256 of the newest checkpoint: params, statistics, optimizer state, key, step, sums and data position."""
    folder = run / "checkpoints"
    steps = sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit()) if folder.is_dir() else []
    if not steps:
        raise InputError(f"{run} holds no checkpoint; allowed: the --out folder of a training run")
    newest = folder.absolute() / str(steps[-1])
    try:
        with ocp.StandardCheckpointer() as reader:
            state = reader.restore(newest / "state")
        position = json.loads((newest / "data" / "metadata").read_text())
    except Exception as error:
        raise _damaged(newest, error) from error
    return steps[-1], _sha256(state, position)


def _sha256(state: Any, position: Position) -> str:
    total = hashlib.sha256(json.dumps(position, sort_keys=True).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        value = np.asarray(leaf)
        total.update(f"{jax.tree_util.keystr(path)} {value.dtype} {value.shape}".encode())
        total.update(value.tobytes())
    return total.hexdigest()


@dataclasses.dataclass(frozen=True)
class Options:
    """Look at the checkpoints of a training run."""

    action: Annotated[Literal["digest"], tyro.conf.Positional]
    """digest: one sha256 over everything that the run carries on from."""
    run: Annotated[Path, tyro.conf.Positional]
    """The --out folder of a training run."""


def main() -> None:
    """The command line."""
    from deepjax.command import parse, run

    run(lambda: _print_digest(parse(Options)))


def _print_digest(options: Options) -> None:
    step, value = digest(options.run)
    print(f"{value}  step {step}  {options.run}")


if __name__ == "__main__":
    main()
