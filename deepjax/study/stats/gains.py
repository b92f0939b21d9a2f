"""What a change of the network brings: as a factor, and at each of two settings, at one of which it may bring more."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from deepjax.study.arms import ArmResult
from deepjax.study.report.curves import format_ratio
from deepjax.study.report.html import percent_points
from deepjax.study.stats.claims import SETS
from deepjax.study.stats.rules import Rule
from deepjax.study.stats.verdict import Outcome, Verdict, mean_interval, paired_interval

Pair = tuple[ArmResult, ArmResult]  # with the change, without it


def compare_gains(
    claim: str,
    pairs: Mapping[str, Pair],
    of: str,
    rule: Rule,
    control: tuple[Outcome, ...] = (),
) -> Verdict:
    """The change's difference in a final error at the first of two settings less that at the second, paired by seed.

    pairs: by the name of the setting; `of`: "train_error" or "test_error"; the rule is on the difference.
    """
    changes = {
        at: np.subtract(changed.final(of), base.final(of)).tolist()
        for at, (changed, base) in pairs.items()
    }
    interval = paired_interval(*changes.values())
    names = list(pairs)
    said = [f"{at}: {percent_points(mean_interval(change))}" for at, change in changes.items()]
    which = SETS[of.removesuffix("_error")]
    return Verdict(
        claim,
        f"Change of the final {which} error, {names[0]} less {names[1]}; paired by seed, Student's 95 % interval.",
        rule.words,
        rule.decide([interval]),
        (*said, f"difference {percent_points(interval)}"),
        {f"change, {names[0]} less {names[1]}": interval},
        changes,
        control,
    )


def as_factors(verdict: Verdict) -> Verdict:
    """A verdict on decimal logarithms of ratios, whose findings tell the ratios: '3.2 times [2.9, 3.5]'."""
    return dataclasses.replace(
        verdict,
        findings=tuple(
            f"{name} {format_ratio(effect)}" for name, effect in verdict.effects.items()
        ),
    )
