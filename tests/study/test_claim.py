"""Claims are judged by their rules: every outcome, the gate, controls, what would settle them."""

import dataclasses

import numpy as np
import pytest

from deepjax.study.baselines import Baseline
from deepjax.study.claim import (
    BOTH,
    FAMILY,
    SAME_LEVEL,
    UNDERPOWERED,
    Claim,
    Control,
    ExactClaim,
    judge_claim,
    judge_claims,
    untrained_arms,
)
from deepjax.study.preset import Preset
from deepjax.study.quantity import error, log, measured
from deepjax.study.stats.holm import first_level
from deepjax.study.stats.rules import above, below, within
from tests.study.results import arm, results

NOISE = np.array([-0.004, 0.001, 0.003, -0.002, 0.002, 0.0])


@pytest.fixture(autouse=True)
def _baseline(monkeypatch):
    """A linear classifier with errors of 17 % on training and 18 % on test images."""
    linear = Baseline(1000, linear_train=0.17, linear_test=0.18, neighbours_test=0.16)
    monkeypatch.setattr("deepjax.study.claim.baseline", {"digits": linear}.__getitem__)


def made(**errors):
    """Arms of six seeds with other noise each, and their training and test errors in per cent."""
    noises = {name: np.roll(NOISE, i) for i, name in enumerate(errors)}
    return results(
        {name: arm(train / 100, test / 100, noises[name]) for name, (train, test) in errors.items()}
    )


WORSE = Claim("b is worse", error("b") - error("a"), above(0), BOTH, interest=1.0)


@pytest.mark.parametrize(
    ("b", "outcome"),
    [
        ((12, 14), "supported"),
        ((8, 10), "refuted"),
        ((10, 14), "inconclusive"),
        ((10, 12), "inconclusive"),
        ((12, 10), "refuted"),  # on test images alone
    ],
)
def test_a_claim_on_both_sets_holds_if_it_does_on_each(b, outcome):
    verdict = judge_claim(WORSE, made(a=(10, 12), b=b))
    assert verdict.outcome == outcome
    assert [effect.name for effect in verdict.effects] == [
        "training error, b less a",
        "test error, b less a",
    ]
    assert [effect.mean for effect in verdict.effects] == pytest.approx([b[0] - 10, b[1] - 12])
    assert verdict.findings[:2] == [
        f"training error: b {b[0]:.2f} %, a 10.00 %",
        f"test error: b {b[1]:.2f} %, a 12.00 %",
    ]


def test_an_arm_that_a_linear_classifier_beats_is_not_judged():
    found = made(a=(10, 12), b=(25, 17))
    verdict = judge_claim(WORSE, found)
    assert (verdict.outcome, verdict.p) == ("not trained", 1.0)
    [reason] = untrained_arms(WORSE, found)
    assert reason in verdict.findings
    assert reason == "not trained: b has 25.00 % training error, a linear classifier 17.00 %"
    on_test = Claim("b", error("b") - error("a"), above(0))
    assert judge_claim(on_test, found).outcome == "supported"
    without = Claim("b", error("b") - error("a"), above(0), BOTH, gate=False)
    assert judge_claim(without, found).outcome == "supported"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_a_value_that_is_not_a_number_is_inconclusive(value):
    found = results(measured=[{"x": value}, {"x": 2.0}, {"x": 3.0}])
    claim = Claim("x", log(measured("x")), above(0), interest=1.0)
    verdict = judge_claim(claim, found)
    assert (verdict.outcome, verdict.p) == ("inconclusive", 1.0)
    assert (verdict.settles, verdict.power) == ("", "")


def test_several_quantities_must_all_be_in_the_region():
    values = [{"x": 1 + each, "y": each} for each in NOISE]
    both = Claim("like 1", [measured("x"), measured("y")], within(0.5, 1.5))
    verdict = judge_claim(both, results(measured=values))
    assert verdict.outcome == "refuted" and "every one of 2 intervals" in verdict.rule
    assert (
        judge_claim(Claim("x", measured("x"), within(0.5, 1.5)), results(measured=values)).p < 0.01
    )


def test_exact_claims_need_no_seeds():
    verdicts = judge_claims(
        [
            ExactClaim("true", "1 < 2", lambda: (True, "1 and 2"), headline=True),
            ExactClaim("control", "2 < 1", lambda: (False, "2 and 1"), expected=("refuted",)),
        ],
        results(measured=[{}, {}]),
    )
    assert [verdict.outcome for verdict in verdicts] == ["supported", "refuted"]
    assert all(verdict.exact and verdict.p is None for verdict in verdicts)
    assert verdicts[0].headline and verdicts[0].lines() == ["1 and 2"]
    assert verdicts[1].is_as_expected


def test_claims_on_arms_that_a_preset_does_not_run_are_left_out():
    elsewhere = Claim("c", error("c"), above(0))
    assert [v.claim for v in judge_claims([WORSE, elsewhere], made(a=(10, 12), b=(10, 12)))] == [
        "b is worse"
    ]


def test_a_control_has_its_own_level_and_no_promise_of_power():
    """P = 0.02 for six seeds: supported at 5 %, not at 0.5 %."""
    found = results(measured=[{"x": 1 + 120 * each} for each in NOISE])
    claim = Claim("x", measured("x"), above(0.65), interest=1.0)
    p = judge_claim(claim, found).p
    assert SAME_LEVEL < p < 0.05
    control = Control("x", measured("x"), above(0.65), expected=("inconclusive",), level=SAME_LEVEL)
    verdict = judge_claim(control, found)
    assert verdict.outcome == "inconclusive" and verdict.is_as_expected
    assert (verdict.settles, verdict.power) == ("", "")


def test_a_headline_claim_states_its_power_after_holms_correction():
    def power(headline):
        claim = Claim("b", error("b") - error("a"), above(0), interest=0.5, headline=headline)
        return judge_claim(claim, made(a=(10, 12), b=(10, 12))).power

    alone, corrected = power(False), power(True)
    assert alone.endswith("% power at 0.5 points")
    assert corrected.endswith("% power at 0.5 points after Holm's correction")
    assert int(corrected.split()[0]) < int(alone.split()[0])
    assert first_level(FAMILY) == 0.05 / 19


def test_an_open_claim_names_what_would_settle_it_and_what_it_excludes():
    claim = Claim("b", error("b") - error("a"), above(0), interest=0.2, exploratory=UNDERPOWERED)
    verdict = judge_claim(claim, made(a=(10, 12), b=(10, 12)))
    assert verdict.outcome == "inconclusive" and verdict.exploratory == UNDERPOWERED
    assert "0.2 points" in verdict.settles and "seeds" in verdict.settles
    high = verdict.effects[0].complete[1]
    assert f"an effect of {high:.2g} points or more is excluded" in verdict.findings
    assert judge_claim(claim, made(a=(10, 12), b=(10, 14))).settles == ""


def test_the_effect_lists_its_errors_by_source():
    found = results(
        {
            "a": arm(0.1, 0.1, NOISE, selection={"train": 0.0, "test": 0.003}),
            "b": arm(0.1, 0.1, -NOISE, selection={"train": 0.0, "test": 0.004}),
        },
        preset=Preset("digits", 6),
    )
    [effect] = judge_claim(Claim("c", error("b") - error("a"), below(1), gate=False), found).effects
    assert effect.errors["selection"] == pytest.approx(0.5)
    assert effect.errors["images"] == pytest.approx(0, abs=1e-6)
    assert effect.errors["seeds"] == pytest.approx(200 * NOISE.std(ddof=1) / np.sqrt(6))
    assert effect.complete[0] < effect.seeds[0] < effect.seeds[1] < effect.complete[1]


def test_a_measured_claim_is_gated_by_the_networks_that_were_measured():
    """Whose test error, 25 %, is above that of a linear classifier on digits."""
    found = dataclasses.replace(
        made(a=(10, 12), b=(25, 25)), measured=[{"x": 1 + each} for each in NOISE]
    )
    claim = Claim("x", measured("x"), above(0), measures=("a",))
    assert judge_claim(claim, found).outcome == "supported"
    verdict = judge_claim(dataclasses.replace(claim, measures=("a", "b")), found)
    assert verdict.outcome == "not trained"
    assert judge_claims([dataclasses.replace(claim, measures=("c",))], found) == []


def test_a_seed_without_measurements_leaves_its_claims_open():
    """One of its runs has diverged."""
    found = results(measured=[{"x": 1.0}, None, {"x": 1.1}])
    verdict = judge_claim(Claim("x", measured("x"), above(0), interest=1.0), found)
    assert (verdict.outcome, verdict.p) == ("inconclusive", 1.0)
    assert found.values("x") == [1.0, 1.1]
