"""Made-up results of studies, for claims, rules and figures to be applied to."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deepjax.study.arms.result import ArmResult
from deepjax.study.preset import Preset
from deepjax.study.results import StudyResults

IMAGES = {"train": 200, "test": 100}


def arm(
    train: float,
    test: float,
    offsets: Sequence[float] = (-0.001, 0.0, 0.001),
    rows: Sequence[Mapping[str, Any]] = (),
    pilot: str = "",
    selection: Mapping[str, float] | None = None,
    dataset: str = "digits",
) -> ArmResult:
    """An arm with final errors around the given ones, a seed for each offset.

    All images are equally difficult, so that they add nothing to an interval. rows: the rows of
    every seed before the final one.
    """
    errors = {"train": train, "test": test}
    wrong = {
        split: np.add.outer(np.asarray(offsets), np.full(IMAGES[split], error))
        for split, error in errors.items()
    }
    by_seed = []
    for offset in offsets:
        final = {f"{split}_error": error + offset for split, error in errors.items()}
        by_seed.append([*map(dict, rows), {"kind": "final", "step": 1, **final}])
    return ArmResult(0.1, by_seed, wrong, dataset, pilot, selection or {"train": 0.0, "test": 0.0})


def results(
    arms: Mapping[str, ArmResult] | None = None,
    measured: Sequence[Mapping[str, Any]] = (),
    preset: Preset | None = None,
) -> StudyResults:
    """Results of as many seeds as the measured values or the arms have.

    The rate of each arm without a named pilot is its own pilot's.
    """
    arms = {
        name: each if each.pilot else ArmResult(**{**vars(each), "pilot": name})
        for name, each in (arms or {}).items()
    }
    seeds = len(measured) or len(next(iter(arms.values())).rows)
    preset = preset or Preset("digits", seeds, rate=0.1)
    return StudyResults(preset, tuple(range(seeds)), arms, measured)
