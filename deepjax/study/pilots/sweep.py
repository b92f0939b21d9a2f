"""Runs the pilots of an arm: a grid of rates, extended by factors of 2 until the best is inside."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from deepjax.errors import InputError
from deepjax.study.arms.arm import TrainedArm
from deepjax.study.arms.rates import SelectedRate
from deepjax.study.arms.runs import Runner, is_finished, misclassified_images
from deepjax.study.quantity import Split
from deepjax.study.stats.selection import best_rate, is_interior, selection_error
from deepjax.study.workers import TaskReport

LEAST, GREATEST = 1e-5, 13.0  # where the grid ends
Errors = Mapping[str, Mapping[float, np.ndarray]]
"""For "train" and "test", by rate: (seeds, images), 1 where an image is misclassified."""
Means = Mapping[str, Mapping[float, list[float]]]
"""The same by seed."""


def run_pilots(
    arm: TrainedArm,
    grid: Sequence[float],
    out: Path,
    data_dir: str | None,
    report: TaskReport,
    reuse_runs_from: Path | None = None,
) -> None:
    """Train what is missing, in this process. Raises InputError where no rate is inside."""
    runner = Runner(arm, out, data_dir, reuse_runs_from)
    rates, done, steps = list(grid), 0, arm.config.total_steps
    while rates:
        total = done + len(rates) * arm.total_steps
        for rate in rates:
            for seed in arm.seeds:
                runner.run(rate, seed, report, done, total)
                done += steps
        rates = missing_rates(arm, grid, out)
    report(arm.name, done, done)


def missing_rates(arm: TrainedArm, grid: Sequence[float], out: Path) -> list[float]:
    """The rates that the pilots still need; none once the best is inside the grid.

    Raises InputError where the grid would leave the range of rates.
    """
    tried = tried_rates(arm, grid, out)
    missing = [rate for rate in grid if rate not in tried]
    if missing:
        return missing
    best = best_rate(_means(arm, tried, out)[select_on(arm)])
    if is_interior(tried, best):
        return []
    following = 2 * max(tried) if best == max(tried) else min(tried) / 2
    if not LEAST <= following <= GREATEST:
        raise InputError(
            f"arm {arm.name!r} is best at {best:g}, the end of all rates that were tried "
            f"({min(tried):g} to {max(tried):g}); check its network"
        )
    return [following]


def tried_rates(arm: TrainedArm, grid: Sequence[float], out: Path) -> list[float]:
    """The rates whose runs are finished with all seeds: the grid and its extensions, in order."""
    found = [rate for rate in grid if _done(arm, rate, out)]
    if len(found) < len(grid):
        return sorted(found)
    for factor in (0.5, 2.0):
        rate = (min(grid) if factor < 1 else max(grid)) * factor
        while _done(arm, rate, out):
            found.append(rate)
            rate *= factor
    return sorted(found)


def pilot_errors(arm: TrainedArm, grid: Sequence[float], out: Path) -> Errors:
    """The images that finished pilots misclassify."""
    rates = tried_rates(arm, grid, out)
    by_rate = {rate: misclassified_images(arm, rate, out) for rate in rates}
    return {split: {rate: by_rate[rate][split] for rate in rates} for split in ("train", "test")}


def select_on(arm: TrainedArm) -> Split:
    """The images by whose error a rate is selected; "test" are training images held out."""
    return "test" if arm.validation else "train"


def selected_rate(arm: TrainedArm, errors: Errors) -> SelectedRate:
    """The best rate of finished pilots, and what its choice adds to the errors."""
    means = _means_of(errors)
    by = means[select_on(arm)]
    spread = functools.partial(selection_error, by)
    return SelectedRate(best_rate(by), spread(means["train"]), spread(means["test"]))


def _means(arm: TrainedArm, rates: Sequence[float], out: Path) -> Means:
    by_rate = {rate: misclassified_images(arm, rate, out) for rate in rates}
    return _means_of({s: {r: each[s] for r, each in by_rate.items()} for s in ("train", "test")})


def _means_of(errors: Errors) -> Means:
    return {
        split: {rate: each.mean(1).tolist() for rate, each in by_rate.items()}
        for split, by_rate in errors.items()
    }


def _done(arm: TrainedArm, rate: float, out: Path) -> bool:
    return all(is_finished(arm.run_dir(out, rate, seed)) for seed in arm.seeds)
