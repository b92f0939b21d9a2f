"""Which exit codes are started again: the table of docs/launch.md, and the budget."""

import re
from pathlib import Path

import pytest

from deepjax.study.executors.retries import after_exit

LAUNCH = (Path(__file__).parents[3] / "docs" / "launch.md").read_text()
ROWS = re.findall(r"^\| (\d[^|]*) \| ([^|]*) \| (yes|no)([^|]*) \|$", LAUNCH, re.MULTILINE)
TABLE = {
    int(code): again == "yes"
    for codes, _, again, _ in ROWS
    for code in re.findall(r"\d+", codes)
    if code != "0"
}


def test_the_table_has_all_codes():
    assert set(TABLE) == {2, 3, 75, 134, 137, 143}


@pytest.mark.parametrize(("code", "again"), TABLE.items())
def test_a_failure_is_retried_as_the_table_says(code, again):
    assert after_exit(code, failures=0, retries=1, advanced=False).again == again


@pytest.mark.parametrize("code", [75, 134, 137, 139, 143])
def test_the_budget_ends(code):
    assert [after_exit(code, failures, 2, advanced=False).again for failures in range(4)] == [
        True,
        True,
        False,
        False,
    ]


def test_a_stop_after_a_later_checkpoint_does_not_count():
    """So a training of many time limits ends; a kill counts, as it may be the memory's."""
    assert after_exit(143, failures=2, retries=2, advanced=True) == after_exit(143, 2, 9, True)
    assert after_exit(143, failures=2, retries=2, advanced=True).failures == 2
    assert not after_exit(137, failures=2, retries=2, advanced=True).again


@pytest.mark.parametrize("code", [0, 1, 2, 3])
def test_errors_that_would_occur_again_are_not_retried(code):
    assert not after_exit(code, failures=0, retries=100, advanced=True).again
