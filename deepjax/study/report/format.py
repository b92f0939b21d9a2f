"""Counts, outcomes and arms' results as a report shows them."""

from collections.abc import Mapping
from typing import Any

from deepjax.study.arms.result import ArmResult
from deepjax.study.stats.verdict import Verdict


def format_count(count: float) -> str:
    """Three digits and a letter: '67.9 k', '1.96 M'."""
    for size, letter in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return f"{count:g}"


def format_outcome(verdict: Verdict) -> str:
    """The outcome; for a control, also whether it is an expected one."""
    if not verdict.control:
        return verdict.outcome
    if verdict.is_as_expected:
        return f"{verdict.outcome}, as it must be"
    return f"{verdict.outcome}, BUT IT MUST BE {' or '.join(verdict.control).upper()}"


def arm_values(results: Mapping[str, ArmResult]) -> dict[str, Any]:
    """For result.json: each arm's rate and final errors by seed."""
    return {
        name: {
            "rate": arm.rate,
            "dataset": arm.dataset,
            "train_error": arm.errors("train"),
            "test_error": arm.errors("test"),
            "selection": dict(arm.selection),
            "diverged": arm.diverged,
        }
        for name, arm in results.items()
    }
