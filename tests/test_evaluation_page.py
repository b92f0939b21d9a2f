"""docs/evaluation.md: its first commands run as they are written."""

import re
import shlex
from pathlib import Path

import pytest

from deepjax.cli.__main__ import start

PAGE = Path(__file__).parents[1] / "docs" / "evaluation.md"


@pytest.mark.system
def test_the_commands_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    block = re.search(r"```\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert block is not None
    for line in block[1].splitlines():
        command, *arguments = shlex.split(line)
        assert command == "deepjax"
        start(arguments)
    for name in ("digits/table.csv", "average/result.json", "residual/result.json"):
        assert (tmp_path / "tables" / name).is_file()
