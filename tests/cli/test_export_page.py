"""docs/export.md: its commands run, and its examples print what the page shows."""

import re
import shlex
from pathlib import Path

import pytest

from deepjax.cli.__main__ import start
from tests.data.own.images import write_classes

PAGE = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
TRAIN = "train --model resnet18 --width 4 --dataset photos --image-size 32 --steps 2 --batch-size 8"


@pytest.mark.system
def test_commands_run_and_examples_print_what_the_page_shows(tmp_path, monkeypatch, capsys):
    write_classes(tmp_path / "photos", {"ant": 10, "bee": 10, "cat": 10})
    monkeypatch.chdir(tmp_path)
    start([*shlex.split(TRAIN), "--output-dir", "runs/photos"])
    export, _, program, _, *use = re.findall(r"^    deepjax (.*)", PAGE, re.MULTILINE)
    for command in (export, program, *use):  # not those of weights that are not here
        start(shlex.split(command))
    blocks = re.findall(r"```python\n([^`]*)```\n\n((?:    .*\n)+)", PAGE)
    assert len(blocks) == 2
    for code, output in blocks:
        capsys.readouterr()
        exec(compile(code, "docs/export.md", "exec"), {})  # noqa: S102  # our own page
        assert capsys.readouterr().out.splitlines() == [line[4:] for line in output.splitlines()]
