"""Laws are distinguished from one another; the wide networks are those of the theory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepjax.study.study import StudyResults
from experiments.shattered_gradients import LAYERS, LONG, SHORT, STUDY, WIDE, WideNet, judge
from tests.study.results import results

LAWS = {  # by network of WIDE, as theory has them
    "plain, batch norm": lambda depth: 0.5**depth,
    "plain, no norm": lambda depth: 0.5**depth,
    "residual, no norm": lambda depth: 0.75**depth,
    "residual, batch norm": lambda depth: depth**-0.5,
    "residual, tenth": lambda depth: 0.995**depth,
    "plain, looks linear": lambda depth: 1.0,
    "resnet": lambda depth: 0.3,
    "plain": lambda depth: 0.1,
}


def made_up_results(**other) -> StudyResults:
    """Three seeds that keep to the laws but for 1 %, and `other` laws in place of some."""
    laws = LAWS | {name.replace("_", " "): law for name, law in other.items()}

    def seed(number):
        rng = np.random.default_rng(number)
        depths = {*SHORT, *LONG, *LAYERS}
        return {
            name: {str(d): law(d) * rng.uniform(0.99, 1.01) for d in depths}
            for name, law in laws.items()
        }

    return results(STUDY, {}, [seed(number) for number in range(3)])


def outcomes(found: StudyResults) -> list[str]:
    return [verdict.outcome for verdict in judge(found)]


def test_theory_supports_the_claims_and_fails_the_controls():
    assert outcomes(made_up_results()) == ["supported"] * 5 + ["refuted"] * 3
    assert all(verdict.is_as_expected for verdict in judge(made_up_results()))


def test_other_laws_refute_them():
    found = made_up_results(
        **{
            "plain,_batch_norm": LAWS["residual, no norm"],
            "residual,_no_norm": lambda depth: 0.5**depth,
        }
    )
    swapped = [seed | {"plain": seed["resnet"], "resnet": seed["plain"]} for seed in found.measured]
    found = results(STUDY, measured=swapped)
    assert (
        outcomes(found)
        == ["refuted", "supported", "refuted", "supported", "refuted"] + ["refuted"] * 3
    )


@pytest.mark.parametrize("value", [-1e-4, 0.0])
def test_cosines_that_are_not_above_zero_have_no_logarithm_and_decide_nothing(value):
    assert (
        outcomes(
            made_up_results(
                **{"plain,_batch_norm": lambda depth: value if depth > 4 else 0.5**depth}
            )
        )[0]
        == "inconclusive"
    )


def test_a_control_that_fails_is_told():
    halves = made_up_results(**{"plain,_looks_linear": lambda depth: 0.5**depth})
    assert [verdict.is_as_expected for verdict in judge(halves) if verdict.control] == [
        True,
        False,
        True,
    ]


def test_what_looks_linear_is_linear():
    model = WideNet(3, **WIDE["plain, looks linear"][0])
    x = jax.random.normal(jax.random.key(0), (2, 16))
    variables = model.init(jax.random.key(1), x)
    one, other, both = model.apply(variables, jnp.stack([x[0], x[1], x[0] + x[1]]))
    np.testing.assert_allclose(both, one + other, rtol=1e-4)
    assert jax.tree.leaves(variables["params"]["blocks"])[0].shape == (3, 32, 16)


def test_a_residual_block_adds_a_part_of_its_branch():
    x = jax.random.normal(jax.random.key(0), (4, 8))
    outputs = [
        WideNet(1, residual=True, norm=False, beta=beta).init_with_output(jax.random.key(1), x)[0]
        for beta in (0.0, 1.0, 0.1)
    ]
    np.testing.assert_allclose(outputs[2], outputs[0] + 0.1 * (outputs[1] - outputs[0]), atol=1e-5)
    assert float(jnp.abs(outputs[1] - outputs[0]).max()) > 0.01
