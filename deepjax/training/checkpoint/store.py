"""Where the complete checkpoints of a run are: a folder that all processes see."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from deepjax.io import sync_folder
from deepjax.training.checkpoint.inspect import defects, steps_of
from deepjax.training.checkpoint.manifest import change_manifest, read_manifest


class CheckpointStore(Protocol):
    """Complete checkpoints by step; process 0 changes them. All methods raise OSError."""

    folder: Path
    """Where Orbax writes STEP.partial, and reads what `open` returns."""
    is_shared: bool
    """Whether all processes have the same folder, so that each can write its part of it."""

    def clear(self) -> None:
        """Make the folder, and delete what interrupted saves left."""
        ...

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        ...

    def open(self, step: int) -> Path:
        """The folder of a checkpoint on this machine, not verified."""
        ...

    def commit(self, partial: Path) -> None:
        """Make STEP.partial, which is verified, the checkpoint STEP."""
        ...

    def remove(self, step: int) -> None:
        """Delete a checkpoint; an interruption leaves no partial one in the list."""
        ...

    def set_aside(self, step: int) -> str:
        """Take a corrupt checkpoint out of the list; returns the name of what is left."""
        ...

    def facts(self, step: int) -> dict[str, Any]:
        """The manifest of a checkpoint. Raises ValueError for a corrupt one."""
        ...

    def change_facts(self, step: int, **facts: Any) -> None:
        """Change some facts of a manifest at once. Raises ValueError for a corrupt one."""
        ...

    def name(self, step: int) -> str:
        """A checkpoint for messages."""
        ...

    def __str__(self) -> str:
        """The place, for messages."""
        ...


class FolderStore:
    """The folder checkpoints/ of a run directory: a checkpoint is complete when it is renamed."""

    is_shared = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def clear(self) -> None:
        """Make the folder, and delete every STEP.partial."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob("*.partial"):
            shutil.rmtree(left)

    def steps(self) -> list[int]:
        """Steps of the checkpoints on disk, oldest first."""
        return steps_of(self.folder)

    def open(self, step: int) -> Path:
        """The folder STEP."""
        return self.folder / str(step)

    def commit(self, partial: Path) -> None:
        """Rename STEP.partial, atomically."""
        partial.rename(partial.with_suffix(""))
        sync_folder(self.folder)

    def remove(self, step: int) -> None:
        """Rename a checkpoint, then delete it: what an interruption leaves is not in the list."""
        partial = self.folder / f"{step}.partial"
        self.open(step).rename(partial)
        shutil.rmtree(partial)

    def set_aside(self, step: int) -> str:
        """Move a checkpoint to STEP.damaged."""
        aside = self.folder / f"{step}.damaged"
        shutil.rmtree(aside, ignore_errors=True)
        self.open(step).rename(aside)
        return aside.name

    def facts(self, step: int) -> dict[str, Any]:
        """The manifest of a checkpoint."""
        return read_manifest(self.open(step))

    def change_facts(self, step: int, **facts: Any) -> None:
        """Change some facts of a manifest at once."""
        change_manifest(self.open(step), **facts)

    def name(self, step: int) -> str:
        """The path of a checkpoint."""
        return str(self.open(step))

    def __str__(self) -> str:
        """The path of the folder."""
        return str(self.folder)


def newest_valid(store: CheckpointStore, warn: Callable[[str], None]) -> int:
    """Step of the newest valid checkpoint, or -1; corrupt ones are set aside, with a warning."""
    for step in reversed(store.steps()):
        wrong = defects(store.open(step))
        if not wrong:
            return step
        aside = store.set_aside(step)
        warn(f"checkpoint {store.name(step)} is corrupt: {'; '.join(wrong[:3])}; moved to {aside}")
    return -1
