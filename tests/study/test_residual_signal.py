"""What shortcuts do to the signal: rules and controls that can come out either way."""

import math

import jax
import jax.numpy as jnp
import pytest

from deepjax.models import create_model
from deepjax.study.study import StudyResults
from experiments.residual_signal import (
    CLAIMS,
    PRESETS,
    STUDY,
    block_names,
    judge,
    lesion_rises,
    tower,
)
from tests.study.results import results

THEORY = {
    "factor": {"no norm": 2.0, "batch norm": 1.1},
    "exponent": {"no norm": 6.0, "batch norm": 0.8},
    "ratio": {"resnet56": 0.4, "drawn": 1.0},
    "rise": {"resnet56": [1.0, 3.0], "resnet20": [5.0, 15.0], "plain20": [60.0, 80.0]},
    "response": {
        "resnet56": 0.5,
        "resnet20": 0.7,
        "plain20": 0.9,
        "resnet20, drawn": 1.0,
        "plain20, drawn": 1.0,
    },
}
CLAIMED = sum(not claim.control for claim in CLAIMS)


def made_up_results(**changed) -> StudyResults:
    """Three seeds that differ by 1 %; `changed`: kind=(name, value)."""
    values = {
        kind: named | dict([changed[kind]] if kind in changed else [])
        for kind, named in THEORY.items()
    }

    def scaled(value, factor):
        return [factor * each for each in value] if isinstance(value, list) else factor * value

    seeds = [
        {kind: {n: scaled(v, f) for n, v in named.items()} for kind, named in values.items()}
        for f in (0.99, 1.0, 1.01)
    ]
    return results(STUDY, {}, seeds)


def test_theory_supports_the_claims_and_fails_the_controls():
    verdicts = judge(made_up_results())
    assert [verdict.outcome for verdict in verdicts[:CLAIMED]] == ["supported"] * CLAIMED
    assert all(verdict.control and verdict.is_as_expected for verdict in verdicts[CLAIMED:])


@pytest.mark.parametrize(
    ("number", "kind", "name", "value", "outcome"),
    [
        (0, "factor", "no norm", 1.7, "refuted"),
        (0, "factor", "no norm", 1.875, "inconclusive"),
        (1, "exponent", "batch norm", 2.0, "refuted"),
        (2, "rise", "resnet56", [20.0, 30.0], "refuted"),
        (2, "rise", "resnet56", [9.0, 11.0], "inconclusive"),
        (3, "rise", "plain20", [20.0, 30.0], "refuted"),
        (4, "ratio", "resnet56", 0.9, "refuted"),
        (5, "response", "resnet20", 0.9, "refuted"),
        (6, "response", "resnet56", 0.8, "refuted"),
    ],
)
def test_other_numbers_do_not(number, kind, name, value, outcome):
    assert judge(made_up_results(**{kind: (name, value)}))[number].outcome == outcome


@pytest.mark.parametrize(
    ("number", "kind", "name", "value"),
    [
        (7, "factor", "batch norm", 2.0),
        (9, "rise", "plain20", [1.0, 1.0]),
        (11, "ratio", "drawn", 0.3),
    ],
)
def test_a_control_that_fails_is_told(number, kind, name, value):
    assert not judge(made_up_results(**{kind: (name, value)}))[number].is_as_expected


def test_the_blocks_are_those_of_the_network():
    model = create_model("cifar_plain20", width=2)
    names = block_names(model)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"]
    assert set(names) == {name for name in params if name.startswith("stage")} and len(names) == 9
    assert tower(27, normed=False).stages == (27,) and math.comb(27, 13) == 20_058_300


def test_all_blocks_but_those_that_change_the_map_are_left_out():
    """With branches of zero nothing is lost; 3, 2 and 2 blocks keep their input's shape."""
    model = create_model("cifar_resnet20", width=2, zero_init=True)
    images = jax.random.normal(jax.random.key(0), (8, 8, 8, 1))
    variables = jax.jit(model.init)(jax.random.key(1), images)
    assert lesion_rises(model, variables, (images, jnp.arange(8))) == [0.0] * 7


def test_the_papers_numbers_stand_in_the_presets():
    assert (
        "5 to 17 of 54 blocks" in PRESETS["digits"].expected
        and "not measured here" in PRESETS["cifar10"].expected
    )
    assert PRESETS["cifar10"].training["steps"] == 64_000
