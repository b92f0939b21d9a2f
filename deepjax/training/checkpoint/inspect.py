"""Reads checkpoints without a network: their structure, values, digest, and differences."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from deepjax.errors import InputError, require
from deepjax.paths import run_directory
from deepjax.training.checkpoint.manifest import problems, read_manifest

MERGED = "manifest.ocdbt"  # without it Orbax opens nothing, after hundreds of errors of its threads
Position = dict[str, Any]  # what a Grain iterator's get_state returns
# The parts of each leaf that a process holds: index and values.
Values = dict[str, list[tuple[Any, np.ndarray]]]
Structure = dict[str, str]  # "params/stem_conv/kernel": "float32(3, 3, 1, 16)"


def steps_of(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder, oldest first."""
    return (
        sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())
        if folder.is_dir()
        else []
    )


@dataclasses.dataclass(frozen=True)
class CheckpointContents:
    """The contents of a checkpoint on disk."""

    step: int
    position: Position
    leaves: dict[str, np.ndarray]

    @property
    def digest(self) -> str:
        """One sha256 over everything that a run resumes from."""
        total = hashlib.sha256(json.dumps(self.position, sort_keys=True).encode())
        for path, value in self.leaves.items():
            total.update(f"{path} {value.dtype} {value.shape}".encode())
            total.update(value.tobytes())
        return total.hexdigest()


def read_state(run: Path, step: int | None = None) -> tuple[Path, Any]:
    """The folder of a checkpoint, default the newest, and its tree of arrays on the host.

    Raises InputError if there is none, or not that one, or it is corrupt.
    """
    folder = run_directory(run, "run") / "checkpoints"
    steps = steps_of(folder)
    if not steps:
        raise InputError(
            f"{run} holds no checkpoint; allowed: the --output-dir folder of a training run"
        )
    require(
        step is None or step in steps,
        "step",
        step,
        f"one whose checkpoint {run} keeps: {', '.join(map(str, steps))}",
    )
    chosen = folder / str(steps[-1] if step is None else step)
    if wrong := defects(chosen):
        raise InputError(f"checkpoint {chosen} is corrupt: {'; '.join(wrong[:3])}")
    try:
        return chosen, read_tree(chosen)
    except Exception as error:  # valid files, but not written by Orbax
        raise InputError(f"checkpoint {chosen} cannot be read ({error_text(error)})") from error


def read_tree(folder: Path) -> Any:
    """The tree of a checkpoint as arrays on the host, independent of the devices that saved it.

    This process reads it alone: a handler, unlike a Checkpointer, waits for no other process.
    Raises the errors of Orbax and tensorstore.
    """
    handler = ocp.PyTreeCheckpointHandler()
    tree: Any = handler.metadata(_state(folder))
    on_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree.tree)
    return handler.restore(_state(folder), args=ocp.args.PyTreeRestore(restore_args=on_host))


def structure(tree: Any) -> Structure:
    """Type and shape of every leaf by its path, equal for a tree and its checkpoint."""
    return {
        name: f"{np.dtype(leaf.dtype)}{tuple(leaf.shape)}"
        for name, leaf in named_leaves(tree).items()
    }


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by path, without the types of its nodes, which Orbax does not keep."""
    return {
        "/".join(jax.tree_util.keystr((key,), simple=True) for key in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def defects(folder: Path) -> list[str]:
    """The defects of a checkpoint: corrupt files, or leaves unlike its manifest's; empty if valid.

    Every file is hashed and every array opened, but their values are not read.
    """
    if found := problems(folder):
        return found
    if not (_state(folder) / MERGED).is_file():
        return [
            f"its arrays cannot be opened (state/{MERGED} is missing: "
            "Orbax did not merge what the processes wrote)"
        ]
    try:
        stored = structure(ocp.PyTreeCheckpointHandler().metadata(_state(folder)).tree)
    except Exception as error:  # Orbax and tensorstore raise their own kinds
        return [f"its arrays cannot be opened ({error_text(error)})"]
    # Older manifests do not list the leaves.
    return _unequal(read_manifest(folder).get("leaves", stored), stored)


def _unequal(saved: Structure, stored: Structure) -> list[str]:
    names = sorted(
        name for name in saved.keys() | stored.keys() if saved.get(name) != stored.get(name)
    )
    return [
        f"{name} is {stored.get(name, 'missing')}, not {saved.get(name, 'there')}" for name in names
    ]


def local_values(tree: Any) -> Values:
    """A copy on the host of every part of a tree that this process holds, by path."""
    return {
        name: [
            (shard.index, np.array(shard.data))
            for shard in leaf.addressable_shards
            if shard.replica_id == 0
        ]
        for name, leaf in named_leaves(tree).items()
    }


def differing_values(folder: Path, values: Values) -> list[str]:
    """The leaves of a checkpoint that are not bitwise equal to `values`."""
    stored = named_leaves(read_tree(folder)) if values else {}
    return [
        f"{name} has other values"
        for name, parts in values.items()
        if any(np.asarray(stored[name][index]).tobytes() != part.tobytes() for index, part in parts)
    ]


def error_text(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def _state(folder: Path) -> Any:
    """The folder of Orbax's files; Any, as its handlers declare a path type of their own."""
    return folder / "state"


def read_contents(run: Path, step: int | None = None) -> CheckpointContents:
    """The contents of a run's checkpoint, default the newest: all leaves and the data position.

    Raises InputError if there is none, or it is corrupt.
    """
    return contents_of(*read_state(run, step))


def contents_of(folder: Path, state: Any) -> CheckpointContents:
    """The contents of a checkpoint that was read by `read_state`."""
    leaves = {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
    return CheckpointContents(int(folder.name), read_manifest(folder)["position"], leaves)


def digest(run: Path) -> tuple[int, str]:
    """Step and digest of the newest checkpoint of a run."""
    stored = read_contents(run)
    return stored.step, stored.digest


def differences(one: CheckpointContents, other: CheckpointContents) -> list[str]:
    """The differences between two checkpoints, a line for each leaf."""
    lines = [f"step {one.step}, {other.step}"] if one.step != other.step else []
    lines += (
        [f"data position {one.position}, {other.position}"]
        if one.position != other.position
        else []
    )
    for path in sorted(one.leaves.keys() | other.leaves.keys()):
        a, b = one.leaves.get(path), other.leaves.get(path)
        if a is None or b is None or a.shape != b.shape or a.dtype != b.dtype:
            kinds = ["missing" if leaf is None else f"{leaf.dtype}{leaf.shape}" for leaf in (a, b)]
            lines.append(f"{path}: {kinds[0]}, {kinds[1]}")
        elif a.tobytes() != b.tobytes():
            largest = np.abs(a.astype(np.float64) - b.astype(np.float64)).max()
            count = np.count_nonzero(a != b)
            lines.append(f"{path}: {count} of {a.size} numbers differ, by {largest:.3g} at most")
    return lines
