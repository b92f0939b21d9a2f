"""Figures and reports: what is drawn is what was logged, and a report needs no other file."""

import numpy as np
import pytest
from matplotlib import pyplot as plt

from deepjax.analysis.plots import Curve, depth_profile, error_curves, save
from deepjax.html_page import Figure, Table
from deepjax.provenance import provenance
from deepjax.study.report.html import Page, render
from deepjax.study.stats.verdict import Verdict
from tests.study.report.fabricated import control, effect

CURVE = Curve("20 layers", [1, 2, 3], [[90.0, 50.0, 10.0], [80.0, 40.0, 20.0]], "#0072B2", "--")


def test_a_curve_is_the_mean_with_a_band_of_the_extremes():
    figure = error_curves([("title", [CURVE])], "epoch")
    ax = figure.axes[0]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [85, 45, 15])
    assert ax.lines[0].get_linestyle() == "--"
    heights = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (10, 90)
    assert (ax.get_title(loc="left"), ax.get_ylim()) == ("title", (0, 100))
    plt.close(figure)


@pytest.mark.parametrize("script", ["{here}/experiments/own.py", "experiments/own.py"])
def test_the_command_names_no_folder_above_the_one_that_it_was_typed_in(
    script, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    given = [script.format(here=tmp_path), "--preset", "small", "--output-dir"]
    monkeypatch.setattr("sys.argv", [*given, str(tmp_path / "runs" / "own")])
    expected = "python experiments/own.py --preset small --output-dir runs/own"
    assert provenance(1.0, "cpu")["command"] == expected


def test_on_a_logarithmic_axis_the_mean_is_geometric():
    figure = depth_profile(
        [("title", [Curve("a", [0, 1], [[1.0, 4.0], [100.0, 4.0]], "k")])], "norm"
    )
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), [10, 4])
    plt.close(figure)


@pytest.fixture
def report(tmp_path) -> str:
    path = save(error_curves([("t", [CURVE])], "epoch"), tmp_path / "deep" / "error.png")
    verdict = Verdict(
        "Deep & plain is worse",
        "the rule",
        "inconclusive",
        [effect(0.7, 0.1)],
        findings=["found <it>"],
        exploratory="a reason",
        settles="80 % power at 2 points needs 14 seeds",
        power="60 % power at 2 points",
    )
    failed = control("A planted defect is found.", "refuted", ["supported"])
    return render(
        Page(
            "Title",
            "Question?",
            [verdict, failed],
            ["method"],
            [Figure(path, "A <caption>")],
            [Table("numbers", ("arm", "error"), [("plain56", "70 %")])],
            ["a limit"],
            {"command": "python x"},
        )
    )


def test_the_report_has_everything_that_the_verdict_has_escaped(report):
    for text in (
        "Deep &amp; plain is worse",
        "found &lt;it&gt;",
        "test error, a less b: 0.700 [0.600, 0.800] points (seeds alone [0.630, 0.770])",
        "Exploratory: a reason.",
        "60 % power at 2 points.",
        "80 % power at 2 points needs 14 seeds.",
        "the rule",
        "control: refuted, BUT IT MUST BE SUPPORTED",
        "A &lt;caption&gt;",
        "plain56",
        "a limit",
        "python x",
    ):
        assert text in report
    assert report.index("inconclusive") < report.index("the rule") < report.index("numbers")


def test_a_control_that_fails_is_marked(report):
    assert report.count("<section class='verdict control failed'>") == 1
    assert "class='verdict control'" not in report


def test_the_report_needs_no_other_file(report):
    assert report.count('src="data:image/png;base64,') == 1
    assert "http" not in report and "<script src" not in report and "<link" not in report
