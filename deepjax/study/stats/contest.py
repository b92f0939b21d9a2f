"""Networks of known cost against each other on test images: which has less error, is each part of one needed; and their figure."""

import functools
from collections.abc import Mapping, Sequence

from deepjax.study.arms import ArmResult
from deepjax.study.cost import Budget, format_count
from deepjax.study.report.curves import percent
from deepjax.study.report.html import percent_points
from deepjax.study.report.plots import Rows
from deepjax.study.stats.claims import SETS, compare_errors
from deepjax.study.stats.verdict import (
    Interval,
    Outcome,
    Verdict,
    all_above,
    all_below,
    difference_interval,
)

Arms = Mapping[str, ArmResult]
Budgets = Mapping[str, Budget]
Control = tuple[Outcome, ...]
Panel = tuple[str, str, Rows]  # title, label of x, rows


def better(
    claim: str, one: str, other: str, arms: Arms, budgets: Budgets, control: Control = ()
) -> Verdict:
    """Has arm `one` less test error than arm `other`?"""
    rule = "Supported if the interval of the difference lies above 0; refuted if it lies below; else inconclusive."
    decide = functools.partial(all_above, bound=0.0)
    return compare_errors(
        claim,
        _named(other, arms, budgets),
        _named(one, arms, budgets),
        rule,
        decide,
        ("test",),
        control,
    )


def no_better(
    claim: str,
    one: str,
    other: str,
    arms: Arms,
    budgets: Budgets,
    margin: float,
    control: Control = (),
) -> Verdict:
    """Has arm `one` not less test error than arm `other` by a margin or more?"""
    rule = f"Supported if the interval lies below {100 * margin:g} points; refuted if it lies above that; else inconclusive."
    decide = functools.partial(all_below, bound=margin)
    return compare_errors(
        claim,
        _named(other, arms, budgets),
        _named(one, arms, budgets),
        rule,
        decide,
        ("test",),
        control,
    )


def ablation_verdict(claim: str, whole: ArmResult, without: Arms, spare: float) -> Verdict:
    """Does the test error rise with each part that is left out? `spare`: a rise below which a part is not needed."""
    rule = f"Supported if every interval lies above 0; else refuted if one lies below {100 * spare:g} points; else inconclusive."
    how = "Final test error of networks trained without the part, less that of the whole, means over seeds; Welch's 95 % interval."
    errors, base = (
        {part: arm.final("test_error") for part, arm in without.items()},
        whole.final("test_error"),
    )
    effects = {part: difference_interval(each, base) for part, each in errors.items()}
    found = (
        f"without {part} {percent(errors[part])}, whole {percent(base)}: {percent_points(e)}"
        for part, e in effects.items()
    )
    outcome = needed(list(effects.values()), spare)
    return Verdict(
        claim,
        how,
        rule,
        outcome,
        tuple(found),
        effects,
        {"whole": base} | {f"without {p}": e for p, e in errors.items()},
    )


def needed(rises: Sequence[Interval], spare: float) -> Outcome:
    """The rule of `ablation_verdict`."""
    if all(rise.low > 0 for rise in rises):
        return "supported"
    return "refuted" if any(rise.high < spare for rise in rises) else "inconclusive"


def error_panel(
    names: Sequence[str], arms: Arms, budgets: Budgets, which: str, one: str, others: Sequence[str]
) -> Panel:
    """A panel of `rows_figure`: final errors by arm, with its cost; the title has the error of `one` less that of each other.

    `which`: "train" or "test".
    """
    errors = {name: arms[name].final(f"{which}_error") for name in names}
    gaps = {name: percent_points(difference_interval(errors[one], errors[name])) for name in others}
    lines = [
        f"{SETS[which].capitalize()} error of {_words(one)}, less that of",
        *(f"{_words(n)}: {gap}" for n, gap in gaps.items()),
    ]
    rows = {
        f"{_words(name)}\n{format_count(budgets[name].macs)} multiply-adds": [
            100 * e for e in errors[name]
        ]
        for name in names
    }
    return "\n".join(lines), f"final {SETS[which]} error (%)", rows


def _named(name: str, arms: Arms, budgets: Budgets) -> tuple[str, ArmResult]:
    cost = budgets[name]
    return f"{_words(name)} ({cost.params:,} parameters, {cost.macs:,} multiply-adds)", arms[name]


def _words(name: str) -> str:
    return name.replace("_", " ")
