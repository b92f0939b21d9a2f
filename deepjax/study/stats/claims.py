"""Verdicts on what many studies ask: is one arm's error above another's, is it not above it, by how much?"""

from collections.abc import Callable, Sequence

from deepjax.study.arms import ArmResult
from deepjax.study.report.curves import percent
from deepjax.study.report.html import percent_points
from deepjax.study.stats.verdict import (
    Interval,
    Outcome,
    Verdict,
    difference_interval,
    paired_interval,
)

Named = tuple[str, ArmResult]
SETS = {"train": "training", "test": "test"}


def compare_errors(
    claim: str,
    first: Named,
    second: Named,
    rule: str,
    decide: Callable[[Sequence[Interval]], Outcome],
    sets: Sequence[str] = ("train", "test"),
    control: tuple[Outcome, ...] = (),
    paired: bool = False,
) -> Verdict:
    """Final errors of the first arm less those of the second, by a rule: on training images, test images or both.

    `decide`: from the intervals, one a set, to the outcome; errors are fractions. `paired`: difference seed by seed.
    """
    (a_name, a), (b_name, b) = first, second
    effects, values, findings = {}, {}, []
    for name in sets:
        one, other = a.final(f"{name}_error"), b.final(f"{name}_error")
        effects[name] = (paired_interval if paired else difference_interval)(one, other)
        values |= {f"{a_name} {name}": one, f"{b_name} {name}": other}
        means = f"{a_name} {percent(one)}, {b_name} {percent(other)}"
        findings.append(f"{SETS[name]} error: {means}, difference {percent_points(effects[name])}")
    how = "paired by seed, Student's 95 % interval" if paired else "Welch's 95 % interval"
    measure = f"Final error in evaluation mode over every image of the set, mean over seeds; difference with {how}."
    return Verdict(
        claim,
        measure,
        rule,
        decide(list(effects.values())),
        tuple(findings),
        effects,
        values,
        control,
    )
