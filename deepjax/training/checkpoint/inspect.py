"""Checkpoints as they lie on disk, read without a network: their structure, values, digest, and what differs between two."""

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
Values = dict[
    str, list[tuple[Any, np.ndarray]]
]  # of each leaf the parts that a process holds: index and numbers
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
    """A checkpoint as it lies on disk, read without a network."""

    step: int
    position: Position
    leaves: dict[str, np.ndarray]

    @property
    def digest(self) -> str:
        """One sha256 over everything that a run carries on from."""
        total = hashlib.sha256(json.dumps(self.position, sort_keys=True).encode())
        for path, value in self.leaves.items():
            total.update(f"{path} {value.dtype} {value.shape}".encode())
            total.update(value.tobytes())
        return total.hexdigest()


def read_state(run: Path, step: int | None = None) -> tuple[Path, Any]:
    """The folder of a run's checkpoint, default the newest, and the tree of arrays that it holds, on the host.

    Raises InputError when there is none, or not that one, or it is damaged.
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
        raise InputError(f"checkpoint {chosen} is damaged: {'; '.join(wrong[:3])}")
    try:
        return chosen, read_tree(chosen)
    except Exception as error:  # whole, and yet nothing that Orbax wrote
        raise InputError(f"checkpoint {chosen} cannot be read ({reason(error)})") from error


def read_tree(folder: Path) -> Any:
    """The tree of a checkpoint as arrays on the host, whatever devices saved it. Raises what Orbax and tensorstore raise.

    This process reads it alone: a handler, unlike a Checkpointer, waits for no other process.
    """
    handler = ocp.PyTreeCheckpointHandler()
    tree: Any = handler.metadata(_state(folder))
    on_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree.tree)
    return handler.restore(_state(folder), args=ocp.args.PyTreeRestore(restore_args=on_host))


def structure(tree: Any) -> Structure:
    """Type and shape of every leaf by its path, the same for a tree and for what Orbax restores of it."""
    return {
        name: f"{np.dtype(leaf.dtype)}{tuple(leaf.shape)}"
        for name, leaf in named_leaves(tree).items()
    }


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by names without the kinds of its nodes, which Orbax does not keep."""
    return {
        "/".join(jax.tree_util.keystr((key,), simple=True) for key in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def defects(folder: Path) -> list[str]:
    """What is wrong with a checkpoint: files that are damaged, or leaves that are not those of its manifest; empty if it is whole.

    Every file is hashed and every array opened, but their values are not read.
    """
    if found := problems(folder):
        return found
    if not (_state(folder) / MERGED).is_file():
        return [
            f"its arrays cannot be opened (state/{MERGED} is missing: Orbax did not merge what the processes wrote)"
        ]
    try:
        stored = structure(ocp.PyTreeCheckpointHandler().metadata(_state(folder)).tree)
    except Exception as error:  # Orbax and tensorstore raise their own kinds
        return [f"its arrays cannot be opened ({reason(error)})"]
    return _unequal(
        read_manifest(folder).get("leaves", stored), stored
    )  # manifests of before did not list them


def _unequal(saved: Structure, stored: Structure) -> list[str]:
    names = sorted(
        name for name in saved.keys() | stored.keys() if saved.get(name) != stored.get(name)
    )
    return [
        f"{name} is {stored.get(name, 'missing')}, not {saved.get(name, 'there')}" for name in names
    ]


def local_values(tree: Any) -> Values:
    """A copy on the host of every part of a tree that this process holds, by the names of its leaves."""
    return {
        name: [
            (shard.index, np.array(shard.data))
            for shard in leaf.addressable_shards
            if shard.replica_id == 0
        ]
        for name, leaf in named_leaves(tree).items()
    }


def differing_values(folder: Path, values: Values) -> list[str]:
    """The leaves of a checkpoint of which a bit is not as in `values`. Raises what Orbax and tensorstore raise."""
    stored = named_leaves(read_tree(folder)) if values else {}
    return [
        f"{name} has other values"
        for name, parts in values.items()
        if any(np.asarray(stored[name][index]).tobytes() != part.tobytes() for index, part in parts)
    ]


def reason(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def _state(folder: Path) -> Any:
    """Where Orbax's files are; its handlers take any path, and declare a type of their own."""
    return folder / "state"


def read_contents(run: Path, step: int | None = None) -> CheckpointContents:
    """A checkpoint of a run, default the newest: params, statistics, optimizer state, key, step, sums and data position.

    Raises InputError when there is none or it is damaged.
    """
    folder, state = read_state(run, step)
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
    """What differs between two checkpoints, a line for each leaf."""
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
            apart = np.abs(a.astype(np.float64) - b.astype(np.float64))
            lines.append(
                f"{path}: {np.count_nonzero(a != b)} of {a.size} numbers differ, by {apart.max():.3g} at most"
            )
    return lines
