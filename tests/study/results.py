"""Made-up results of studies, for their rules to be applied to."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from deepjax.study.arm_result import ArmResult
from deepjax.study.study import Options, Study, StudyResults


def arm(
    train: float,
    test: float,
    offsets: Sequence[float] = (-0.001, 0.0, 0.001),
    rows: Sequence[Mapping[str, Any]] = (),
    sweep: Mapping[float, float] | None = None,
) -> ArmResult:
    """An arm with final errors around the given ones, a seed for each offset.

    rows: the rows of every seed before the final one.
    """
    by_seed = []
    for offset in offsets:
        errors = {"train_error": train + offset, "test_error": test + offset}
        by_seed.append([*map(dict, rows), {"kind": "final", "step": 1, **errors}])
    return ArmResult(dict(sweep or {0.1: train}), 0.1, by_seed)


def results(
    study: Study,
    arms: Mapping[str, ArmResult] | None = None,
    measured: Sequence[Mapping[str, Any]] = (),
    options: Any = None,
) -> StudyResults:
    """Results of a study on the digits, with the arms that it declares."""
    options, preset = options or Options(), study.presets["digits"]
    return StudyResults(options, preset, arms or {}, measured, study.arms(options, preset))


def judged(study: Study, found: StudyResults) -> StudyResults:
    """The results with their verdicts, ready to be drawn."""
    return dataclasses.replace(found, verdicts=study.judge(found))
