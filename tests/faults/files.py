"""Checkpoints that are damaged, and disks that are full."""

import contextlib
import functools
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from deepjax.training import train
from deepjax.training.checkpoint.inspect import steps_of
from deepjax.training.checkpoint.manager import Checkpoints
from deepjax.training.checkpoint.manifest import problems
from tests.faults.runs import CONFIG, OPTIONS, complete, outcome, programs, reference
from tests.faults.tally import Tally

PAGE = 4096  # bytes: what a tmpfs counts in
LOGS = 4 * PAGE


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _restored(run: Path) -> tuple[int, list[np.ndarray], list[str]]:
    """Step, numbers and warnings of what a resumed run would start from."""
    said: list[str] = []
    opened = Checkpoints(run, warn=said.append)
    state, _ = opened.restore(programs().fresh_state(CONFIG))
    opened.close()
    leaves = [
        np.asarray(leaf)
        for leaf in jax.tree.leaves(state.replace(key=jax.random.key_data(state.key)))
    ]
    return int(state.step), leaves, said


def _equal(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return all(x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))


class _Damage:
    """A finished run, copies of which are damaged; what its second newest checkpoint holds."""

    def __init__(self, work: Path, name: str) -> None:
        self.run = work / name
        complete(self.run)
        older, newest = steps_of(self.run / "checkpoints")[-2:]
        self.newest = self.run / "checkpoints" / str(newest)
        alone = work / f"{name}-older" / "checkpoints" / str(older)
        shutil.copytree(self.run / "checkpoints" / str(older), alone)
        self.older, self.numbers, _ = _restored(work / f"{name}-older")

    def falls_back(self, damaged: Path) -> bool:
        """Whether a resumed run names the corrupt file and restores the previous step bitwise.

        The folder is repaired afterwards.
        """
        step, numbers, said = _restored(self.run)
        named = len(said) == 1 and (damaged.relative_to(self.newest).as_posix() in said[0])
        self.newest.with_name(f"{self.newest.name}.damaged").rename(self.newest)
        return step == self.older and _equal(numbers, self.numbers) and named


def bit_flips(tries: int, work: Path, seed: int = 0, restores: int = 10) -> Tally:
    """One bit flipped anywhere, files weighted by size.

    Every flip must be found by verification; every `restores`-th is also restored in full.
    """
    tally = Tally(
        "one bit flipped anywhere in a checkpoint", "0 unnoticed; the newest good step is used"
    )
    damage = _Damage(work, "flipped")
    rng = random.Random(seed)
    files = _files(damage.newest)
    sizes = [path.stat().st_size for path in files]
    for turn in range(tries):
        path = rng.choices(files, sizes)[0]
        whole = path.read_bytes()
        place = rng.randrange(len(whole) * 8)
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << (place % 8)
        path.write_bytes(flipped)
        noticed = any(path.name in line for line in problems(damage.newest))
        what = f"bit {place} of {path.relative_to(damage.newest)}"
        if turn % restores == 0:
            tally.attempt(
                what, lambda path=path, noticed=noticed: noticed and damage.falls_back(path)
            )
        else:
            tally.count(noticed, what)
        path.write_bytes(whole)
    tally.note = f"({len(range(0, tries, restores))} of them restored in full)"
    return tally


def cut_files(tries: int, work: Path, seed: int = 0) -> Tally:
    """Every file truncated to 0, 50 and 99 %, or deleted."""
    tally = Tally("truncated or deleted checkpoint file", "never wrong values")
    damage = _Damage(work, "cut")
    for path in _files(damage.newest)[: tries or None]:
        whole = path.read_bytes()
        for share in (0.0, 0.5, 0.99, None):
            if share is None:
                path.unlink()
            else:
                path.write_bytes(whole[: int(share * len(whole))])
            if share is None or share * len(whole) < len(whole):
                tally.attempt(
                    f"{path.relative_to(damage.newest)} {share}",
                    lambda path=path: damage.falls_back(path),
                )
            path.write_bytes(whole)
    return tally


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """A tmpfs of so many bytes; raises OSError where mounting is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["/bin/mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise OSError(done.stderr.strip())
    try:
        yield
    finally:
        subprocess.run(["/bin/umount", "-l", str(folder)], check=True)


def can_mount(work: Path) -> bool:
    """Whether a small disk can be made here."""
    try:
        with small_disk(work / "probe", 2**20):
            return True
    except OSError:
        return False


def full_disk(tries: int, work: Path, seed: int = 0) -> Tally:
    """A disk that is full, or has room for 0.2 ... 1.8 checkpoints, until step 9, then free.

    The run must not halt, and must end as without the fault.
    """
    tally = Tally(
        "disk full while saving (small tmpfs)",
        "training continues, warning, next save after freeing works",
    )
    if not can_mount(work):
        tally.untried = "mounting is not allowed here"
        return tally
    expected = reference(work)
    size = sum(
        path.stat().st_size
        for path in _files(work / f"reference-{CONFIG.epochs}" / "checkpoints" / "14")
    )
    for level in range(tries):
        disk = work / f"disk-{level}"
        with small_disk(disk, 20 * size):
            room = 0.2 * level * size + (LOGS if level else 0)
            tally.attempt(
                f"room for {0.2 * level:.1f} checkpoints",
                functools.partial(_fills, disk, room, expected),
            )
    return tally


def _fills(disk: Path, room: float, expected: tuple[object, ...]) -> bool:
    """Train with little room until step 9, then free the disk; raises if a sign is absent."""
    said: list[str] = []
    out, ballast = disk / "run", disk / "ballast"
    later: set[int] = set()

    def at(step: int, total: int, note: str) -> None:
        if step == 1:  # config, logs and folders are there by now
            _fill(ballast, shutil.disk_usage(disk).free - int(room))
        if step >= 9:
            ballast.unlink(missing_ok=True)
            later.update(s for s in steps_of(out / "checkpoints") if 9 < s < total)

    train(CONFIG, out, OPTIONS, programs=programs(), report=at, say=said.append)
    shows = {
        # The disk never has room for two checkpoints.
        "a warning of the checkpoint": any("could not be written" in line for line in said),
        "a warning of the logs": bool(room) or any("metrics.jsonl" in line for line in said),
        "a checkpoint after freeing": bool(later),
        "the same end": outcome(out) == expected,
    }
    if missing := [what for what, shown in shows.items() if not shown]:
        raise AssertionError(f"not seen: {', '.join(missing)}; said: {said}")
    return True


def _fill(ballast: Path, size: int) -> None:
    """A file of so many bytes, or of all that there is room for."""
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        for _ in range(0, size, PAGE):
            file.write(bytes(PAGE))
