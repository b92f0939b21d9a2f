"""Which tasks a study has: the runs of its arms, its pilots, the measurements of its seeds."""

import functools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from deepjax.study.arms.arm import TrainedArm
from deepjax.study.arms.rates import read_rates
from deepjax.study.arms.runs import copy_finished_run, diverged, is_finished
from deepjax.study.claim import Claim
from deepjax.study.executors.tasks import StudyTask, by_name, training_task
from deepjax.study.measurement import PARTS, measure_seed, measurement_path
from deepjax.study.pilots.record import RATES
from deepjax.study.pilots.sweep import GREATEST, LEAST, missing_rates
from deepjax.study.prepared import PreparedStudy, rehearsal
from deepjax.study.study import pilot_grid


def study_tasks(run: PreparedStudy) -> dict[str, StudyTask]:
    """All tasks of a study by name, finished ones too: its runs, or its pilots; measurements."""
    if not run.options.pilots:
        return by_name([*_runs(run, run.arms.values()), *measurements(run, only_missing=False)])
    pilots = [
        task
        for arm in run.arms.values()
        for rate in _possible_rates(pilot_grid(run.preset, arm.name))
        for task in _runs(run, [arm], rate)
    ]
    rates_file = run.out / RATES
    if run.arms and not rates_file.exists():
        return by_name(pilots)
    judged = rehearsal(run, read_rates(rates_file) if run.arms else {})
    return by_name(
        [*pilots, *_runs(run, judged.arms.values()), *measurements(judged, only_missing=False)]
    )


def missing_runs(run: PreparedStudy, arms: Iterable[TrainedArm]) -> list[StudyTask]:
    """The runs of these arms that are to be trained; those of other studies are copied first."""
    return [
        training_task(arm, arm.rate, seed, run.out, run.options.data_dir)
        for arm in arms
        for seed in arm.seeds
        if _is_missing(run, arm, arm.rate, seed)
    ]


def missing_pilots(run: PreparedStudy) -> list[StudyTask]:
    """The runs that the pilots need next, until the best rate of each arm is inside its grid."""
    return [
        training_task(arm, rate, seed, run.out, run.options.data_dir)
        for arm in run.arms.values()
        for rate in missing_rates(arm, pilot_grid(run.preset, arm.name), run.out)
        for seed in arm.seeds
        if _is_missing(run, arm, rate, seed)
    ]


def measurements(run: PreparedStudy, only_missing: bool = True) -> list[StudyTask]:
    """The seeds that are to be measured.

    A seed is omitted where a run that is measured has diverged.
    """
    study = run.study
    if study.measure is None:
        return []
    opened = {arm for each in study.claims if isinstance(each, Claim) for arm in each.measures}
    tasks = []
    for i, seed in enumerate(run.seeds):
        runs = {name: arm.run_dirs(run.out)[i] for name, arm in run.arms.items()}
        path = measurement_path(run.out, seed)
        if only_missing and (
            path.exists() or any(diverged(runs[name]) for name in opened & runs.keys())
        ):
            continue
        name = str(path.with_suffix("").relative_to(run.out))
        given = (run.preset.dataset, run.preset, seed, runs, run.options.data_dir, run.out, name)
        task = functools.partial(measure_seed, study.measure, *given)
        done = functools.partial(_measured_parts, path)
        tasks.append(StudyTask(name, PARTS, task, path.exists, done))
    return tasks


def _measured_parts(path: Path) -> int:
    return PARTS if path.exists() else 0


def _runs(
    run: PreparedStudy, arms: Iterable[TrainedArm], rate: float | None = None
) -> Iterator[StudyTask]:
    for arm in arms:
        for seed in arm.seeds:
            yield training_task(arm, rate or arm.rate, seed, run.out, run.options.data_dir)


def _is_missing(run: PreparedStudy, arm: TrainedArm, rate: float, seed: int) -> bool:
    run_dir, reuse = arm.run_dir(run.out, rate, seed), run.options.reuse_runs_from
    return not (
        is_finished(run_dir) or copy_finished_run(arm.run_config(rate, seed), run_dir, reuse)
    )


def _possible_rates(grid: Sequence[float]) -> list[float]:
    """The rates of a grid, and those by which the pilots may extend it."""
    found, lower, higher = list(grid), min(grid) / 2, 2 * max(grid)
    while lower >= LEAST:
        found.append(lower)
        lower /= 2
    while higher <= GREATEST:
        found.append(higher)
        higher *= 2
    return found
