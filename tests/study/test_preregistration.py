"""The rules are recorded once; a claim that is changed or added afterwards is exploratory."""

import dataclasses

import pytest

from deepjax.study.claim import CHANGED, Claim, Control
from deepjax.study.conclude import conclude
from deepjax.study.preregistration import changed_claims, record_rules
from deepjax.study.preset import Preset
from deepjax.study.quantity import measured
from deepjax.study.stats.rules import above, below
from deepjax.study.study import Study
from tests.study.results import results

PRESET = Preset("digits", 3)
CLAIM = Claim("x is large", measured("x"), above(0), interest=1.0)
CONTROL = Control("x is small", measured("x"), below(0))


def study(*claims):
    return Study(
        name="a", title="A?", lecture="", presets={"small": PRESET}, claims=claims, figures=(),
        method="", limits="",
    )  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"rule": above(0.5)},
        {"quantity": measured("y")},
        {"interest": 2.0},
        {"sets": ("train",)},
        {"headline": True},
        {"gate": False},
        {"exploratory": "underpowered"},
    ],
)
def test_a_claim_that_is_changed_is_found(change, tmp_path):
    record_rules(study(CLAIM, CONTROL), PRESET, tmp_path)
    record_rules(study(), PRESET, tmp_path)  # never written again
    assert changed_claims(study(CLAIM, CONTROL), PRESET, tmp_path) == set()
    assert changed_claims(study(CONTROL, CLAIM), PRESET, tmp_path) == set()
    changed = dataclasses.replace(CLAIM, **change)
    assert changed_claims(study(changed, CONTROL), PRESET, tmp_path) == {"x is large"}


def test_a_control_that_is_changed_and_a_claim_that_is_added_are_found(tmp_path):
    record_rules(study(CLAIM, CONTROL), PRESET, tmp_path)
    for change in ({"level": 0.01}, {"expected": ("inconclusive",)}):
        changed = dataclasses.replace(CONTROL, **change)
        assert changed_claims(study(CLAIM, changed), PRESET, tmp_path) == {"x is small"}
    added = dataclasses.replace(CLAIM, text="new")
    assert changed_claims(study(CLAIM, CONTROL, added), PRESET, tmp_path) == {"new"}
    more = dataclasses.replace(PRESET, seeds=9)
    assert changed_claims(study(CLAIM), more, tmp_path) == {"x is large"}


def test_without_recorded_rules_nothing_is_known_to_have_changed(tmp_path):
    assert changed_claims(study(CLAIM), PRESET, tmp_path) == set()


def test_the_verdict_of_a_changed_claim_is_exploratory(tmp_path):
    record_rules(study(CLAIM, CONTROL), PRESET, tmp_path)
    found = results(measured=[{"x": 1.0}, {"x": 1.1}, {"x": 1.2}], preset=PRESET)
    changed = study(dataclasses.replace(CLAIM, rule=above(0.5)), CONTROL)
    verdicts = conclude(changed, "small", found, tmp_path, 1.0).verdicts
    assert [verdict.outcome for verdict in verdicts] == ["supported", "refuted"]
    assert [verdict.exploratory for verdict in verdicts] == [CHANGED, ""]
