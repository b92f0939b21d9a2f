"""Saves to a disk and to emulated buckets, and what a save costs the training that goes on.

python experiments/benchmarks/scale_bucket.py --models cifar_resnet20

The servers of tests/storage run on this machine, so that they take time from the training too.
"""

import contextlib
import dataclasses
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import fsspec
import jax
from harness import write_result

from deepjax import command_line
from deepjax.progress import counter
from deepjax.storage.bucket import Bucket
from deepjax.training import RunOptions, compile_training, train_config
from deepjax.training.build import CompiledTraining
from deepjax.training.checkpoint.bucket_store import BucketStore
from deepjax.training.checkpoint.manager import Checkpoints
from deepjax.training.checkpoint.store import FolderStore

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.storage.servers import running

PLACES = ("disk", "s3", "gs")
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Options:
    """What is saved, and how often it is measured."""

    models: tuple[str, ...] = ("cifar_resnet20", "resnet50")
    """Networks whose training state is saved."""
    rounds: int = 5
    """Saves to each place, which take turns; medians are reported."""
    output: Path | None = None
    """A new JSON file for the rows."""


def main() -> None:
    """Measure and print a row for each network and place."""
    options = command_line.parse(Options)
    rows = [row for name in options.models for row in measure(name, options.rounds)]
    for row in rows:
        print(row)
    if options.output:
        write_result({"rows": rows}, options.output)


def measure(name: str, rounds: int) -> list[Row]:
    """A row for each place: seconds of a save, and of the training that it delays."""
    config = train_config(
        name, "digits", batch_size=16 if name == "resnet50" else 128, image_size=32
    )
    programs = compile_training(config, RunOptions())
    seconds: dict[str, list[tuple[float, float, float]]] = {place: [] for place in PLACES}
    with contextlib.ExitStack() as stack:
        places = {place: stack.enter_context(opened(place)) for place in PLACES}
        training = Training(programs)
        training.run(5.0)
        with counter("saving", rounds * len(PLACES), "save", 10.0) as advance:
            for _ in range(rounds):
                for place in PLACES:
                    seconds[place].append(one_save(training, places[place]))
                    advance(1)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(training.state.params)) * 2
    return [row(name, place, size, seconds[place]) for place in PLACES]


class Training:
    """A training that goes on, on one batch."""

    def __init__(self, programs: CompiledTraining) -> None:
        self._programs = programs
        self.state = programs.fresh_state(programs.config)
        self._batch: Any = next(iter(programs.batches(programs.config)))

    def run(self, seconds: float, until: Any = None) -> tuple[int, float]:
        """Steps for so long, or until a function is true; their number and duration."""
        begin, steps = time.monotonic(), 0
        while time.monotonic() - begin < seconds if until is None else not until() or steps == 0:
            self.state, _ = self._programs.train_step(self.state, self._batch)
            jax.block_until_ready(self.state.step)
            steps += 1
        return steps, time.monotonic() - begin


def one_save(training: Training, checkpoints: Checkpoints) -> tuple[float, float, float]:
    """Seconds until the loop goes on, until the save is done, and that the training lost.

    Lost: while the save runs beside it, steps take longer than alone just before.
    """
    steps, alone = training.run(3.0)
    begin = time.monotonic()
    checkpoints.save(training.state, {"next_index": 0})
    blocked = time.monotonic() - begin
    done = checkpoints.is_saving
    count, during = training.run(0.0, until=lambda: not done())
    total = time.monotonic() - begin
    checkpoints.wait_until_finished()
    return blocked, total, blocked + during - count * alone / steps


def row(name: str, place: str, size: int, found: list[tuple[float, float, float]]) -> Row:
    """Medians, and the loss in per cent of a training that saves once a minute."""
    blocked, total, lost = (statistics.median(each) for each in zip(*found, strict=True))
    return {
        "network": name,
        "place": {"disk": "disk", "s3": "S3 (emulated)", "gs": "GCS (emulated)"}[place],
        "MB": round(size / 1e6, 1),
        "save, s": round(total, 2),
        "of which the loop waits, s": round(blocked, 2),
        "training time lost, s": round(lost, 2),
        "lost at one save a minute, %": round(100 * lost / 60, 1),
        "saves": len(found),
    }


@contextlib.contextmanager
def opened(place: str) -> Iterator[Checkpoints]:
    """Checkpoints in a temporary folder or an emulated bucket."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        store: Any = FolderStore(folder / "checkpoints")
        if place != "disk":
            server = stack.enter_context(running(place))
            stack.enter_context(mock.patch.dict(os.environ, server.environment))
            drivers = {"s3": "s3", "gs": "gcs"}  # which keep the address of an earlier server
            fsspec.get_filesystem_class(drivers[place]).clear_instance_cache()
            store = BucketStore(Bucket(server.url("saves")), folder / "checkpoints", 1)
        checkpoints = Checkpoints(folder, warn=print, store=store)
        stack.callback(checkpoints.close)
        yield checkpoints


if __name__ == "__main__":
    command_line.run_command(main)
