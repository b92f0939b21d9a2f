"""Counts, outcomes and arms' results as a report shows them; intervals: `stats/intervals.py`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from deepjax.study.arm_result import ArmResult
from deepjax.study.stats.verdict import Verdict


def format_count(count: int) -> str:
    """Three digits and a letter: '67.9 k', '1.96 M'."""
    for size, letter in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return str(count)


def format_outcome(verdict: Verdict) -> str:
    """The outcome; for a control, also whether it is an expected one."""
    if not verdict.control:
        return verdict.outcome
    if verdict.is_as_expected:
        return f"{verdict.outcome}, as it must be"
    return f"{verdict.outcome}, BUT IT MUST BE {' or '.join(verdict.control).upper()}"


def arm_values(results: Mapping[str, ArmResult]) -> dict[str, Any]:
    """For result.json: each arm's rate, sweep and final values by seed; null for a halted rate."""
    keys = ("train_error", "test_error", "train_loss", "test_loss")
    return {
        name: {
            "rate": arm.rate,
            "sweep": {f"{r:g}": e if np.isfinite(e) else None for r, e in arm.sweep.items()},
        }
        | {key: arm.final(key) for key in keys}
        for name, arm in results.items()
    }
