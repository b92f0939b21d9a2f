"""Harder to optimise, not less able: rules that can fail; a linear classifier is convex."""

import jax
import pytest

from deepjax.study.networks import Stack
from deepjax.study.study import StudyResults
from experiments.optimization import CLAIMS, PRESETS, STUDY, judge, surface
from tests.study.results import results

FOUND = {
    "error": {
        "plain20": 2.0,
        "plain56": 65.0,
        "resnet56": 0.5,
        "identities": 2.0,
        "identities, tuned": 1.5,
    }
    | {"drawn": 90.0, "drawn, tuned": 60.0},
    "ratio": {"plain56": 0.5, "resnet56": 0.1, "linear": 0.0},
    "concave": {"plain56": 0.4, "resnet56": 0.1, "linear": 0.0},
}
CLAIMED = sum(not claim.control for claim in CLAIMS)


def made_up_results(**changed) -> StudyResults:
    """Three seeds that differ by 1 %; `changed`: kind=(name, value)."""
    values = {
        kind: named | dict([changed[kind]] if kind in changed else [])
        for kind, named in FOUND.items()
    }
    seeds = [
        {kind: {name: f * v for name, v in named.items()} for kind, named in values.items()}
        for f in (0.99, 1.0, 1.01)
    ]
    return results(STUDY, {}, seeds)


def test_what_the_paper_says_supports_the_claims_and_fails_the_controls():
    verdicts = judge(made_up_results())
    assert [verdict.outcome for verdict in verdicts[:CLAIMED]] == ["supported"] * CLAIMED
    assert all(verdict.control and verdict.is_as_expected for verdict in verdicts[CLAIMED:])


@pytest.mark.parametrize(
    ("number", "kind", "name", "value", "outcome"),
    [
        (0, "error", "identities", 2.5, "refuted"),
        (0, "error", "identities", 2.1, "inconclusive"),
        (1, "error", "plain56", 1.0, "refuted"),
        (2, "error", "identities, tuned", 9.0, "refuted"),
        (3, "ratio", "plain56", 0.05, "refuted"),
        (4, "concave", "plain56", 0.1, "inconclusive"),
    ],
)
def test_other_numbers_do_not(number, kind, name, value, outcome):
    assert judge(made_up_results(**{kind: (name, value)}))[number].outcome == outcome


@pytest.mark.parametrize(
    ("number", "name", "value"), [(5, "drawn", 2.0), (6, "drawn, tuned", 2.0), (7, "resnet56", 9.0)]
)
def test_a_control_that_fails_is_told(number, name, value):
    assert not judge(made_up_results(error=(name, value)))[number].is_as_expected


def test_the_surface_of_a_linear_classifier_is_convex():
    images = jax.random.normal(jax.random.key(0), (32, 4, 4, 1))
    batch = {"image": images, "label": (images.mean((1, 2, 3)) > 0).astype(int)}
    found = surface(
        Stack(()), Stack(()).init(jax.random.key(1), images), batch, seed=0, points=5, steps=10
    )
    assert found["concave"] == 0 and found["ratio"] < 1e-4 and found["largest"] > 0.01


def test_the_papers_numbers_stand_in_the_presets():
    assert (
        "8.18 / 13.31" in PRESETS["cifar10"].expected
        and PRESETS["cifar10"].training["steps"] == 64_000
    )
