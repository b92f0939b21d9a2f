"""The page of pilots: every error by rate, the selected rate, the power."""

import json

from deepjax.study.report.pilots_page import write_pilots_page

ERRORS = {"0.05": [0.2, 0.3], "0.1": [0.1, 0.1], "0.2": [0.3, 0.3]}
RECORD = {
    "study": "small_filters",
    "preset": "small",
    "dataset": "fashion_mnist_small",
    "pilot_seeds": 3,
    "select": "validation",
    "arms": {
        "one_7x7": {
            "rate": 0.1,
            "selection": {"train": 0.001, "test": 0.0023},
            "errors": {"train": ERRORS, "test": ERRORS},
        },
        "stack": {
            "rate": 0.4,
            "selection": {"train": 0.0, "test": 0.0},
            "errors": {"train": {"0.4": [0.15]}, "test": {"0.4": [0.16]}},
        },
    },
    "power": {
        "Better.": {"interest": 1.0, "level": 0.0025, "power": 0.913},
        "Worse.": {"interest": 0.5, "level": 0.05, "power": 0.4},
    },
    "wall_seconds": 120.0,
    "hardware": "1 x cpu",
}


def test_rates_are_a_table_with_the_selected_one_in_bold(tmp_path):
    (tmp_path / "small_filters-small.json").write_text(json.dumps(RECORD))
    page = write_pilots_page(tmp_path).read_text()
    for line in (
        "## Small filters, preset small",
        "| network | 0.05 | 0.1 | 0.2 | 0.4 | left open |",
        "| one 7x7 | 25.0 / 25.0 | **10.0 / 10.0** | 30.0 / 30.0 |  | 0.10 / 0.23 |",
        "| stack |  |  |  | **15.0 / 16.0** | 0.00 / 0.00 |",
        "| Better. | 1 | 91 % |",
        "| Worse. | 0.5 | 40 %, too little |",
    ):
        assert line in page.splitlines()
    assert "[Every error](small_filters-small.json)" in page


def test_without_pilots_the_page_says_so(tmp_path):
    assert "No pilots are published yet." in write_pilots_page(tmp_path).read_text()
