"""docs/own_data.md: its commands run, and its examples print what the page shows."""

import re
import shlex
from pathlib import Path

import pytest

from deepjax.cli.__main__ import start
from tests.data.own.images import write_classes

PAGE = (Path(__file__).parents[3] / "docs" / "own_data.md").read_text()
SHORTER = ["--steps", "2", "--batch-size", "8", "--image-size", "32", "--width", "4"]


@pytest.fixture(autouse=True)
def _photos(tmp_path, monkeypatch):
    """20 images for each of three classes, one of them twice."""
    photos = write_classes(tmp_path / "photos", {"ant": 20, "bee": 20, "cat": 20})
    (photos / "ant" / "copy.jpg").write_bytes((photos / "ant" / "0.jpg").read_bytes())
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("block", re.findall(r"```python\n([^`]*)```\n\n((?:    .*\n)+)", PAGE))
def test_examples_print_what_the_page_shows(block, capsys):
    code, output = block
    exec(compile(code, "docs/own_data.md", "exec"), {})  # noqa: S102  # our own page
    shown = [line[4:] for line in output.splitlines()]
    assert capsys.readouterr().out.splitlines() == shown


def test_the_commands_of_the_first_lines_run(tmp_path, capsys):
    check, train, convert, predict = re.findall(r"    deepjax (.*)", PAGE)
    start(shlex.split(check))
    assert "3 classes, 49 train, 12 test" in capsys.readouterr().out
    start(shlex.split(convert))
    assert "49 train, 12 test images; read them with --dataset photos_256" in (
        capsys.readouterr().out
    )
    start([*shlex.split(train), *SHORTER])
    assert (tmp_path / "runs" / "photos" / "dataset.json").is_file()
    (tmp_path / "photos" / "ant").rename(tmp_path / "new")
    (tmp_path / "new" / "0.jpg").rename(tmp_path / "holiday.jpg")
    start(shlex.split(predict))
    assert (tmp_path / "found.csv").read_text().count("holiday.jpg") == 3
