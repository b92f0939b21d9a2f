"""Results: measured values by path, verdicts by text, and arms some of whose seeds diverged."""

import pytest

from deepjax.study.arms.runs import with_final_row
from deepjax.study.cost import network_cost
from deepjax.study.report.study_figures import error_by_epoch, gradient_profile
from deepjax.study.results import StudyResults
from deepjax.study.stats.verdict import Verdict
from tests.study import toy
from tests.study.results import arm, results

ROWS = [
    {"kind": "first", "step": 1, "gradient_norms": {"a": 1.0, "b": 2.0}},
    *(
        {
            "kind": "epoch",
            "step": 5 * epoch,
            "epoch": float(epoch),
            "running_error": 0.5 / epoch,
            "test_error": 0.6 / epoch,
            "gradient_norms": {"a": 1.0 / epoch, "b": 2.0},
        }
        for epoch in (1, 2)
    ),
]
FIGURES = [
    error_by_epoch("epochs", "Error.", {"panel": {"label": "a"}, "other": {"b": "b"}}),
    gradient_profile("gradients", "Norms.", {"a": "label"}),
]


def diverged(result, *seeds):
    """The result with the rows of runs that halted in their first epoch or at their first step."""
    for i in seeds:
        halted = [*ROWS[: i % 2], {"kind": "halted", "step": 3}]
        result.rows[i] = with_final_row(halted, "digits")
    return result


def test_values_are_found_by_their_path_seed_by_seed():
    found = results(measured=[{"a": {"b": 1}, "c": [1]}, {"a": {"b": 2}, "c": [2]}])
    assert found.values("a", "b") == [1, 2] and found.values("c", 0) == [1, 2]
    with pytest.raises(KeyError):
        found.values("a", "d")


def test_a_verdict_is_found_by_the_beginning_of_its_text():
    verdicts = [Verdict(text, "r", "supported") for text in ("One is.", "Two are.")]
    found = StudyResults(toy.STUDY.presets["quick"], (0, 1), {}, verdicts=verdicts)
    assert found.verdict("Two") is verdicts[1]


def test_costs_are_those_of_the_networks():
    trained = {name: toy.trained_arm(name) for name in ("deep", "shallow")}
    found = StudyResults(toy.STUDY.presets["quick"], (0, 1), {}, trained=trained)
    # 64 pixels, 16 features a layer, 10 classes.
    assert found.costs["shallow"].macs == 64 * 16 + 16 * 10
    assert found.costs["deep"].macs == 64 * 16 + 2 * 16 * 16 + 16 * 10
    assert found.costs["deep"] == network_cost(trained["deep"])


def test_rows_of_seeds_that_diverged_are_left_out_of_curves_and_their_errors_are_not():
    result = diverged(arm(0.1, 0.2, rows=ROWS), 1, 2)
    assert result.diverged == 2 and len(result.finished) == 1
    assert result.first() == [{"a": 1.0, "b": 2.0}] and result.last() == [{"a": 0.5, "b": 2.0}]
    assert [[row["epoch"] for row in epochs] for epochs in result.epochs()] == [[1.0, 2.0]]
    assert result.final("test_error") == pytest.approx([0.199, 0.9, 0.9])


@pytest.mark.parametrize("seeds", [(), (1,), (0, 2)])
def test_curves_are_drawn_of_the_seeds_that_did_not_diverge(seeds):
    found = results({"a": diverged(arm(0.1, 0.2, rows=ROWS), *seeds)})
    for declared, lines in zip(FIGURES, (2, 1), strict=True):
        figure = declared.draw(found, "title")
        assert figure is not None
        drawn = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 2]
        assert len(drawn) >= lines


def test_no_curve_is_drawn_where_all_seeds_diverged():
    found = results({"a": diverged(arm(0.1, 0.2, rows=ROWS), 0, 1, 2)})
    assert [declared.draw(found, "title") for declared in FIGURES] == [None, None]
