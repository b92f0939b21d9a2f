"""Measures one seed of a study by its `measure`, and keeps what it returned."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from deepjax.io import write_text
from deepjax.study.preset import Preset
from deepjax.study.study import SeedContext
from deepjax.study.workers import TaskReport

PARTS = 100  # of one seed's measurement, in the progress display


def measure_seed(
    measure: Callable[[SeedContext], Mapping[str, Any] | None],
    dataset: str,
    preset: Preset,
    seed: int,
    runs: Mapping[str, Path],
    data_dir: str | None,
    out: Path,
    name: str,
    report: TaskReport,
) -> None:
    """Measure one seed, and write its file. name: of the task, for its progress."""

    def progress(done: int, total: int) -> None:
        report(name, round(PARTS * done / total), PARTS)

    measured = measure(SeedContext(dataset, preset, seed, runs, data_dir, progress))
    write_text(measurement_path(out, seed), json.dumps(measured) + "\n")
    progress(1, 1)


def measurement_path(out: Path, seed: int) -> Path:
    """Where the measurement of a seed is kept."""
    return out / "measured" / f"seed{seed}.json"
