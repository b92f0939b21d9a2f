"""Networks without batch norm: rules that can fail, on the declared networks."""

import pytest

from deepjax.study.arm_result import ArmResult
from deepjax.study.report.metrics import largest_rate
from deepjax.study.report.plots import rate_curves
from deepjax.study.study import Options
from experiments.normalizer_free import (
    DEEP,
    NETWORKS,
    PRESETS,
    SCHEMES,
    SHALLOW,
    STUDY,
    judge,
    make_arms,
)
from tests.study.results import arm, results


def training_error(train: float) -> ArmResult:
    """An arm of three seeds with training errors around the given one."""
    return arm(train, train, (-0.002, 0.0, 0.002), sweep={0.1: train, 0.01: 0.9})


GOOD = {f"{kind}{DEEP}": training_error(0.01) for kind in NETWORKS} | {
    f"batch{SHALLOW}": training_error(0.01)
}
FOUND = GOOD | {f"none{DEEP}": training_error(0.9), f"none{SHALLOW}": training_error(0.1)}


def outcomes(arms: dict[str, ArmResult]) -> list[str]:
    return [verdict.outcome for verdict in judge(results(STUDY, arms))]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, ["supported"] * 6),
        # Without normalisation nothing is lost.
        ({f"none{DEEP}": training_error(0.01)}, ["refuted", "refuted", *["supported"] * 4]),
        # On the margin.
        ({f"none{DEEP}": training_error(0.03)}, ["inconclusive", "refuted", *["supported"] * 4]),
        ({f"nf{DEEP}": training_error(0.2)}, [*["supported"] * 5, "refuted"]),
        (
            {f"fixup{DEEP}": training_error(0.03)},
            ["supported", "supported", "inconclusive", *["supported"] * 3],
        ),
    ],
)
def test_each_verdict_can_come_out_either_way(change, expected):
    assert outcomes(FOUND | change)[:6] == expected


def test_the_controls_flip_and_would_be_seen_if_they_did_not():
    controls = judge(results(STUDY, FOUND))[6:]
    assert [control.outcome for control in controls] == ["refuted", "refuted"]
    assert all(control.is_as_expected for control in controls)
    blind = FOUND | {f"none{DEEP}": training_error(0.01), f"batch{DEEP}": training_error(0.2)}
    assert not any(control.is_as_expected for control in judge(results(STUDY, blind))[6:])


def test_no_arm_but_the_baseline_has_batch_norm():
    arms = make_arms(Options(), PRESETS["digits"])
    assert list(arms) == [
        *[f"{kind}{DEEP}" for kind in NETWORKS],
        f"batch{SHALLOW}",
        f"none{SHALLOW}",
    ]
    for kind in ("none", "rezero"):
        make = arms[f"{kind}{DEEP}"].make
        assert make is not None and vars(make())["norm"] == "none"
    assert {"fixup", "skipinit", "rezero", "nf"} == set(SCHEMES)


def test_the_largest_rate_that_trains_is_read_off_the_sweep():
    diverged = ArmResult({0.1: float("inf"), 0.01: 0.2, 0.001: 0.4}, 0.01, [])
    assert (largest_rate(diverged), largest_rate(ArmResult({0.1: 0.9}, 0.1, []))) == (
        "0.01",
        "none",
    )
    (line,) = rate_curves({"a": diverged})
    assert (list(line.x), line.y) == ([0.001, 0.01, 0.1], [[40.0, 20.0, 100.0]])
