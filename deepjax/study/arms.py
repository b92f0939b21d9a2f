"""Runs the arms of a study: each arm at the best of a few learning rates, over several seeds; finished runs are not repeated."""

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
from deepjax.study.workers import TaskReport
from deepjax.training.config import CUSTOM_NETWORK_PREFIX, TrainConfig
from deepjax.training.config_file import init_run_dir
from deepjax.training.metrics_log import Row, read_rows
from deepjax.training.numerics import claim_numerics
from deepjax.training.run_lock import NAME as LOCK


@dataclasses.dataclass(frozen=True)
class Arm:
    """One condition of a study: every rate is tried on the first seed, and the best one is repeated on the others."""

    name: str
    config: TrainConfig
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    save_every: int = 0
    """Steps between checkpoints of a run; 0 for once an epoch."""
    make: Callable[..., nn.Module] | None = None
    """Makes the network where its name starts with "own/": a module's class or a partial of one; takes num_classes and dtype."""

    def __post_init__(self) -> None:
        named = (
            re.fullmatch(r"\w[\w.-]*", self.name, re.ASCII) is not None
        )  # it names a folder, and must stay in its own
        require(named, "arm", self.name, "letters, digits, '_', and after the first '.' and '-'")

    @property
    def total_steps(self) -> int:
        """Steps of all its runs."""
        return (len(self.rates) + len(self.seeds) - 1) * self.config.total_steps

    def run(self, rate: float, seed: int) -> TrainConfig:
        """The configuration of one run."""
        return dataclasses.replace(self.config, learning_rate=rate, seed=seed)

    def folder(self, out: Path, rate: float, seed: int) -> Path:
        """The run directory of one run."""
        return out / "runs" / self.name / f"lr{rate:g}-seed{seed}"


@dataclasses.dataclass(frozen=True)
class ArmResult:
    """What an arm gave: training error by rate in the sweep, the rate chosen, and the rows of every seed's run."""

    sweep: dict[float, float]
    rate: float
    rows: list[list[Row]]

    def final(self, name: str) -> list[float]:
        """A value of the final row, seed by seed."""
        return [rows[-1][name] for rows in self.rows]

    def first(self) -> list[dict[str, float]]:
        """Gradient norms by layer at the first step, seed by seed."""
        return [rows[0]["gradient_norms"] for rows in self.rows]

    def last(self) -> list[dict[str, float]]:
        """Gradient norms by layer, mean over the last epoch, seed by seed."""
        return [self.epochs(i)[-1]["gradient_norms"] for i in range(len(self.rows))]

    def epochs(self, seed: int) -> list[Row]:
        """The epochs of one seed's run. Raises InputError where it diverged before the first one ended."""
        epochs = [row for row in self.rows[seed] if row["kind"] == "epoch"]
        if not epochs:
            raise InputError(
                f"seed {seed} diverged before its first epoch ended, so no epoch is known of it; choose lower rates"
            )
        return epochs

    @property
    def diverged(self) -> int:
        """How many seeds diverged, which count as guessing."""
        return sum(rows[-1].get("diverged", False) for rows in self.rows)


def run_arm(
    arm: Arm,
    out: Path,
    data_dir: str | None,
    report: TaskReport,
    reuse_runs_from: Path | None = None,
) -> None:
    """Every run of one arm, one after the other in this process; the network is compiled once. Resumes and skips what is done.

    `reuse_runs_from`: a folder of studies, of whose finished runs those of the same configuration are copied in place of being repeated.
    """
    from deepjax.training import RunOptions, compile_training, train

    programs = None
    options = RunOptions(save_every=arm.save_every, keep_best=0, data_dir=data_dir)
    done = 0

    def run(rate: float, seed: int) -> None:
        nonlocal done, programs
        folder = arm.folder(out, rate, seed)
        if not _finished(folder) and not (
            reuse_runs_from and _copied(arm.run(rate, seed), folder, reuse_runs_from)
        ):
            programs = programs or compile_training(arm.config, options, make=arm.make)
            with contextlib.suppress(
                NonFiniteError
            ):  # a training that diverges is a result: in the sweep its rate is not chosen
                train(
                    arm.run(rate, seed),
                    folder,
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


def _copied(config: TrainConfig, folder: Path, reuse_runs_from: Path) -> bool:
    """Whether another study has finished this very run, of a network of the registry; it is copied then."""
    if config.model.startswith(CUSTOM_NETWORK_PREFIX):
        return False
    for other in sorted(reuse_runs_from.glob(f"*/runs/*/{folder.name}")):
        if _finished(other) and _is_of(other, config):
            shutil.rmtree(folder, ignore_errors=True)  # what was begun is of no more use
            shutil.copytree(other, folder, ignore=shutil.ignore_patterns(LOCK))
            return True
    return False


def _is_of(folder: Path, config: TrainConfig) -> bool:
    try:
        claim_numerics(folder)
        init_run_dir(folder, config)
    except InputError:
        return False
    return True


def sweep_errors(arm: Arm, out: Path) -> dict[float, float]:
    """Final training error by rate; infinity where training halted; rates whose run is missing are left out."""
    errors = {}
    for rate in arm.rates:
        rows = read_rows(arm.folder(out, rate, arm.seeds[0]) / "metrics.jsonl")
        if rows and rows[-1]["kind"] in ("final", "halted"):
            errors[rate] = rows[-1].get("train_error", math.inf)
    return errors


def best_rate(sweep: dict[float, float]) -> float:
    """The rate of the lowest training error; of equals the highest rate."""
    return min(sweep, key=lambda rate: (sweep[rate], -rate))


def collect(arm: Arm, out: Path) -> ArmResult | None:
    """The result of an arm from its run directories, or None while runs are missing."""
    sweep = sweep_errors(arm, out)
    if len(sweep) < len(arm.rates):
        return None
    rate = best_rate(sweep)
    folders = [arm.folder(out, rate, seed) for seed in arm.seeds]
    if not all(map(_finished, folders)):
        return None
    return ArmResult(
        sweep,
        rate,
        [_concluded(read_rows(folder / "metrics.jsonl"), arm.config.dataset) for folder in folders],
    )


def _concluded(rows: list[Row], dataset: str) -> list[Row]:
    """The rows of a run; of one that diverged with a final row, in which it guesses: error 1 - 1 / classes, loss log(classes)."""
    if rows[-1]["kind"] == "final":
        return rows
    classes = dataset_info(dataset).num_classes
    guess = {f"{name}_error": 1 - 1 / classes for name in ("train", "test")} | {
        f"{n}_loss": math.log(classes) for n in ("train", "test")
    }
    return [*rows, {"kind": "final", "step": rows[-1]["step"], "diverged": True} | guess]


def _finished(folder: Path) -> bool:
    rows = read_rows(folder / "metrics.jsonl")
    return bool(rows) and rows[-1]["kind"] in ("final", "halted")
