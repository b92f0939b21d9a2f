"""Figures and page: what is drawn is what was logged, and the page needs no other file."""

import numpy as np
import pytest
from matplotlib import pyplot as plt

from deepjax.analysis.plots import Curve, depth_profile, error_curves, save
from deepjax.study.report.html import Figure, Page, Table, render
from deepjax.study.report.provenance import provenance
from deepjax.study.stats.intervals import Interval, percent_points
from deepjax.study.stats.verdict import Verdict

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
    monkeypatch.setattr("sys.argv", [script.format(here=tmp_path), "--dataset", "digits"])
    assert provenance(1.0, "cpu")["command"] == "python experiments/own.py --dataset digits"


def test_on_a_logarithmic_axis_the_mean_is_geometric():
    figure = depth_profile(
        [("title", [Curve("a", [0, 1], [[1.0, 4.0], [100.0, 4.0]], "k")])], "norm"
    )
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), [10, 4])
    plt.close(figure)


@pytest.fixture
def page(tmp_path) -> str:
    picture = Figure(
        save(error_curves([("t", [CURVE])], "epoch"), tmp_path / "deep" / "error.png"),
        "A <caption>",
    )
    effects = {"train": Interval(0.7, 0.6, 0.8)}
    verdict = Verdict(
        "Deep & plain is worse",
        "how",
        "the rule",
        "supported",
        ("found <it>",),
        effects,
        {"a": [0.7]},
    )
    table = Table("numbers", ("arm", "error"), [("plain56", "70 %")])
    return render(
        Page(
            "Title",
            "Question?",
            [verdict],
            ["method"],
            [picture],
            [table],
            ["a limit"],
            {"command": "python x"},
        )
    )


def test_the_page_says_everything_and_escapes_it(page):
    for text in (
        "Deep &amp; plain is worse",
        "found &lt;it&gt;",
        "the rule",
        "A &lt;caption&gt;",
        "plain56",
        "a limit",
        "python x",
    ):
        assert text in page
    assert page.index("supported") < page.index("the rule") < page.index("numbers")


def test_the_page_needs_no_other_file(page):
    assert page.count('src="data:image/png;base64,') == 1
    assert "http" not in page and "<script" not in page and "<link" not in page


def test_effects_in_points():
    assert percent_points(Interval(0.731, 0.702, 0.76)) == "+73.1 [+70.2, +76.0] points"
