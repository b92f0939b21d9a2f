"""The page of timm's options: every option of ours on it exists."""

import re
from pathlib import Path

import pytest

from deepjax.cli import evaluate_options, train
from deepjax.command_line import option_flags

PAGE = Path(__file__).parents[1] / "docs" / "timm.md"
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.read_text().splitlines()
    if line.startswith("|") and "---" not in line
][1:]
TRAIN, EVALUATE = option_flags(train.Options), option_flags(evaluate_options.Options)


@pytest.mark.parametrize(("theirs", "ours"), [row[:2] for row in ROWS])
def test_our_options_exist(theirs, ours):
    known = EVALUATE if "validate" in theirs else TRAIN
    for flag in re.findall(r"--[a-z-]+", ours):
        assert flag in known


def test_the_page_has_the_fifteen_most_used():
    assert len(ROWS) >= 15
