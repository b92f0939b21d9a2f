"""Trains the runs of an arm, and collects their results."""

import contextlib
import math
import shutil
from pathlib import Path

import numpy as np

from deepjax.data import dataset_info
from deepjax.errors import InputError, NonFiniteError
from deepjax.study.arms.arm import TrainedArm
from deepjax.study.arms.predictions import FILE, read_misclassified, write_misclassified
from deepjax.study.arms.result import ArmResult
from deepjax.study.workers import TaskReport
from deepjax.training import CompiledTraining, RunOptions, compile_training, train
from deepjax.training.config import TrainConfig
from deepjax.training.metrics.metrics_log import METRICS, read_rows
from deepjax.training.metrics.writer import Row
from deepjax.training.run_directory.config_file import init_run_dir
from deepjax.training.run_directory.numerics import claim_numerics
from deepjax.training.run_directory.run_lock import NAME as LOCK

SAVE_EVERY = 2000  # repeating a run of a few hundred steps is faster than saving and restoring it


class Runner:
    """Trains runs of one arm in this process; its programs are compiled once, when first needed."""

    def __init__(
        self, arm: TrainedArm, out: Path, data_dir: str | None, reuse_runs_from: Path | None
    ) -> None:
        """reuse_runs_from: finished runs of equal configuration in its studies are copied."""
        self._arm, self._out, self._reuse = arm, out, reuse_runs_from
        save_every = min(arm.config.total_steps, SAVE_EVERY)
        self._options = RunOptions(
            save_every=save_every,
            keep_best=0,
            data_dir=data_dir,
            resident=not dataset_info(arm.config.dataset).encoded,
        )
        self._programs: CompiledTraining | None = None

    def run(self, rate: float, seed: int, report: TaskReport, done: int, total: int) -> None:
        """One run, unless it is finished; done, total: steps of the task, for its progress."""
        arm, config = self._arm, self._arm.run_config(rate, seed)
        run_dir = arm.run_dir(self._out, rate, seed)
        if is_finished(run_dir) or copy_finished_run(config, run_dir, self._reuse):
            return
        self._programs = self._programs or compile_training(
            arm.config, self._options, make=arm.make
        )

        def progress(step: int, steps: int, note: str) -> None:
            report(arm.name, done + step, total)

        # A training that diverges is a result: it counts as guessing.
        with contextlib.suppress(NonFiniteError):
            train(config, run_dir, self._options, programs=self._programs, report=progress)
            write_misclassified(run_dir, self._programs, arm.make)


def copy_finished_run(config: TrainConfig, run_dir: Path, reuse: Path | None) -> bool:
    """Whether a study in the folder `reuse` has finished this run, which is copied then."""
    if reuse is None:
        return False
    runs = run_dir.parents[1].name
    for other in sorted(reuse.glob(f"*/{runs}/*/{run_dir.name}")):
        if is_finished(other) and is_run_of(other, config):
            # Under another name first, since a copy that is interrupted may look finished.
            partial = run_dir.with_name(f"{run_dir.name}.partial")
            for path in (partial, run_dir):  # run_dir: an unfinished run
                shutil.rmtree(path, ignore_errors=True)
            shutil.copytree(other, partial, ignore=shutil.ignore_patterns(LOCK))
            partial.rename(run_dir)
            return True
    return False


def run_arm(
    arm: TrainedArm,
    out: Path,
    data_dir: str | None,
    report: TaskReport,
    reuse_runs_from: Path | None = None,
) -> None:
    """Train what is missing of an arm, in this process."""
    runner = Runner(arm, out, data_dir, reuse_runs_from)
    for i, seed in enumerate(arm.seeds):
        runner.run(arm.rate, seed, report, i * arm.config.total_steps, arm.total_steps)
    report(arm.name, arm.total_steps, arm.total_steps)


def is_finished(run_dir: Path) -> bool:
    """Whether a run has ended and its images were predicted, or has diverged."""
    rows = read_rows(run_dir / METRICS)
    return bool(rows) and (
        _halted(rows) or (rows[-1]["kind"] == "final" and (run_dir / FILE).exists())
    )


def diverged(run_dir: Path) -> bool:
    """Whether a run has ended because it diverged."""
    rows = read_rows(run_dir / METRICS)
    return bool(rows) and _halted(rows)


def _halted(rows: list[Row]) -> bool:
    return rows[-1]["kind"] == "halted"


def collect(arm: TrainedArm, out: Path) -> ArmResult | None:
    """The results of an arm from its run directories, or None while runs are missing.

    Raises InputError for a finished run of another configuration.
    """
    runs = arm.run_dirs(out)
    if not all(map(is_finished, runs)):
        return None
    misclassified = misclassified_images(arm, arm.rate, out)
    rows = [with_final_row(read_rows(run / METRICS), arm.config.dataset) for run in runs]
    return ArmResult(arm.rate, rows, misclassified, arm.config.dataset, arm.pilot, arm.selection)


def misclassified_images(arm: TrainedArm, rate: float, out: Path) -> dict[str, np.ndarray]:
    """(seeds, images) for "train" and "test": 1 where an image is misclassified.

    Of finished runs; one that diverged guesses: 1 - 1 / classes at every image. Raises InputError
    for a run of another configuration.
    """
    runs, config = [arm.run_dir(out, rate, seed) for seed in arm.seeds], arm.config
    for run_dir, seed in zip(runs, arm.seeds, strict=True):
        if not is_run_of(run_dir, arm.run_config(rate, seed)):
            raise InputError(
                f"{run_dir} is a run of another configuration; choose another --output-dir, or "
                "remove it to train it again"
            )
    dataset = config.described
    limit = config.data.eval_train_images or dataset.train_size
    images = {"train": min(limit, dataset.train_size), "test": dataset.test_size}
    guess = 1 - 1 / dataset.num_classes
    found = [read_misclassified(run) for run in runs]
    return {
        split: np.array(
            [np.full(count, guess) if each is None else each[split] for each in found], np.float64
        )
        for split, count in images.items()
    }


def with_final_row(rows: list[Row], dataset: str) -> list[Row]:
    """The rows of a run; one that diverged gets a final row of guessing.

    Guessing: error 1 - 1 / classes, loss log(classes).
    """
    if rows[-1]["kind"] == "final":
        return rows
    classes = dataset_info(dataset).num_classes
    final = {"kind": "final", "step": rows[-1]["step"], "diverged": True}
    for name in ("train", "test"):
        final |= {f"{name}_error": 1 - 1 / classes, f"{name}_loss": math.log(classes)}
    return [*rows, final]


def is_run_of(run_dir: Path, config: TrainConfig) -> bool:
    """Whether a run directory has this configuration and JAX's present numerical settings."""
    try:
        claim_numerics(run_dir)
        init_run_dir(run_dir, config)
    except InputError:
        return False
    return True
