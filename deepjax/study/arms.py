"""Runs the arms of a study: each at the best of a few learning rates, over several seeds."""

import contextlib
import dataclasses
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from flax import linen as nn

from deepjax.data import dataset_info
from deepjax.errors import InputError, NonFiniteError, require
from deepjax.study.arm_result import ArmResult
from deepjax.study.workers import TaskReport
from deepjax.training.config import CUSTOM_NETWORK_PREFIX, TrainConfig
from deepjax.training.metrics.metrics_log import Row, read_rows
from deepjax.training.run_directory.config_file import init_run_dir
from deepjax.training.run_directory.numerics import claim_numerics
from deepjax.training.run_directory.run_lock import NAME as LOCK


@dataclasses.dataclass(frozen=True)
class Arm:
    """One condition of a study: learning rates swept on the first seed, the best on the others."""

    name: str
    config: TrainConfig
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    save_every: int = 0
    """Steps between checkpoints of a run; 0 for once an epoch."""
    make: Callable[..., nn.Module] | None = None
    """Makes the network, for a model name that starts with "own/".

    A module's class or a partial of one; takes num_classes and dtype.
    """

    def __post_init__(self) -> None:
        # The name is a directory's, which must stay inside the study's.
        valid = re.fullmatch(r"\w[\w.-]*", self.name, re.ASCII) is not None
        require(valid, "arm", self.name, "letters, digits, '_', and after the first '.' and '-'")

    @property
    def total_steps(self) -> int:
        """Steps of all its runs."""
        return (len(self.rates) + len(self.seeds) - 1) * self.config.total_steps

    def run_config(self, rate: float, seed: int) -> TrainConfig:
        """The configuration of one run."""
        return dataclasses.replace(self.config, learning_rate=rate, seed=seed)

    def run_dir(self, out: Path, rate: float, seed: int) -> Path:
        """The run directory of one run. out: the study directory."""
        return out / "runs" / self.name / f"lr{rate:g}-seed{seed}"


def run_arm(
    arm: Arm,
    out: Path,
    data_dir: str | None,
    report: TaskReport,
    reuse_runs_from: Path | None = None,
) -> None:
    """Run what is missing of one arm, in this process; the network is compiled once.

    reuse_runs_from: a directory of studies, whose finished runs of equal configuration are copied
    instead.
    """
    from deepjax.training import RunOptions, compile_training, train

    programs = None
    options = RunOptions(save_every=arm.save_every, keep_best=0, data_dir=data_dir)
    done = 0

    def run(rate: float, seed: int) -> None:
        nonlocal done, programs
        config, run_dir = arm.run_config(rate, seed), arm.run_dir(out, rate, seed)
        if not _is_finished(run_dir) and not (
            reuse_runs_from and _copy_finished(config, run_dir, reuse_runs_from)
        ):
            programs = programs or compile_training(arm.config, options, make=arm.make)
            # A training that diverges is a result: the sweep does not choose its rate.
            with contextlib.suppress(NonFiniteError):
                train(
                    config,
                    run_dir,
                    options,
                    programs=programs,
                    report=lambda step, total, note: report(arm.name, done + step, arm.total_steps),
                )
        done += arm.config.total_steps

    for rate in arm.rates:
        run(rate, arm.seeds[0])
    rate = best_rate(sweep_errors(arm, out))
    for seed in arm.seeds[1:]:
        run(rate, seed)
    report(arm.name, arm.total_steps, arm.total_steps)


def _copy_finished(config: TrainConfig, run_dir: Path, studies: Path) -> bool:
    """Copy this run from another study that has finished it; whether there is one.

    Only for networks of the registry: the name of another does not determine it.
    """
    if config.model.startswith(CUSTOM_NETWORK_PREFIX):
        return False
    for other in sorted(studies.glob(f"*/runs/*/{run_dir.name}")):
        if _is_finished(other) and is_run_of(other, config):
            shutil.rmtree(run_dir, ignore_errors=True)  # an unfinished run
            shutil.copytree(other, run_dir, ignore=shutil.ignore_patterns(LOCK))
            return True
    return False


def is_run_of(run_dir: Path, config: TrainConfig) -> bool:
    """Whether a run directory has this configuration and JAX's present numerical settings."""
    try:
        claim_numerics(run_dir)
        init_run_dir(run_dir, config)
    except InputError:
        return False
    return True


def sweep_errors(arm: Arm, out: Path) -> dict[float, float]:
    """Final training error by rate: infinite where training halted; no entry for a missing run."""
    errors = {}
    for rate in arm.rates:
        rows = read_rows(arm.run_dir(out, rate, arm.seeds[0]) / "metrics.jsonl")
        if rows and rows[-1]["kind"] in ("final", "halted"):
            errors[rate] = rows[-1].get("train_error", math.inf)
    return errors


def best_rate(sweep: dict[float, float]) -> float:
    """The rate of the lowest training error; of ties the highest rate."""
    return min(sweep, key=lambda rate: (sweep[rate], -rate))


def collect(arm: Arm, out: Path) -> ArmResult | None:
    """The results of an arm from its run directories, or None while runs are missing."""
    sweep = sweep_errors(arm, out)
    if len(sweep) < len(arm.rates):
        return None
    rate = best_rate(sweep)
    runs = [arm.run_dir(out, rate, seed) for seed in arm.seeds]
    if not all(map(_is_finished, runs)):
        return None
    rows = [_with_final_row(read_rows(run / "metrics.jsonl"), arm.config.dataset) for run in runs]
    return ArmResult(sweep, rate, rows)


def _with_final_row(rows: list[Row], dataset: str) -> list[Row]:
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


def _is_finished(run_dir: Path) -> bool:
    rows = read_rows(run_dir / "metrics.jsonl")
    return bool(rows) and rows[-1]["kind"] in ("final", "halted")
