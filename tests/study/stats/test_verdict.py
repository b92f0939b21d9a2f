"""A verdict says what was found, and whether a control came out as it must."""

import pytest

from deepjax.study.stats.verdict import Effect, Verdict


@pytest.mark.parametrize(
    ("outcome", "control", "as_expected"),
    [
        ("refuted", ("refuted",), True),
        ("supported", ("refuted",), False),
        ("inconclusive", ("refuted", "inconclusive"), True),
        ("not trained", ("refuted", "inconclusive"), False),
        ("supported", (), True),  # a claim
    ],
)
def test_a_control_says_whether_it_came_out_as_it_must(outcome, control, as_expected):
    assert Verdict("c", "r", outcome, control=control).is_as_expected == as_expected


def test_an_effect_shows_the_interval_over_seeds_where_it_is_another():
    alone = Effect("test error, a", " points", 1.0, (0.5, 1.5), (0.5, 1.5), (1.0, 1.0))
    assert alone.text() == "test error, a: 1.00 [0.500, 1.50] points"
    complete = Effect("test error, a", " points", 1.0, (0.5, 1.5), (0.25, 1.75), (1.0, 1.0))
    assert complete.text().endswith("points (seeds alone [0.500, 1.50])")
    verdict = Verdict("c", "r", "supported", [alone], findings=["one more"])
    assert verdict.lines() == [alone.text(), "one more"]
