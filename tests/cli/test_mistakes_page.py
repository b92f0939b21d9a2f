"""docs/mistakes.md: every command is refused in one line, as the page says."""

import importlib.util
from pathlib import Path
from unittest import mock

import pytest

from deepjax.data.catalog import CATALOG

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("make_mistakes", ROOT / "docs" / "make_mistakes.py")
make_mistakes = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(make_mistakes)
COMMANDS = [command for commands in make_mistakes.MISTAKES.values() for command in commands]


@pytest.fixture(scope="module")
def folder(page):
    """With the data sets of the page only: other tests register more."""
    known = {name: dataset for name, dataset in CATALOG.items() if f" {name}," in page}
    with mock.patch.dict(CATALOG, known, clear=True), make_mistakes.inputs() as there:
        yield there


@pytest.fixture(scope="module")
def page():
    return make_mistakes.PAGE.read_text()


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_is_refused_as_the_page_says(command, folder, page):
    found = make_mistakes.message(command).replace(f"{folder}/", "")
    assert found and "\n" not in found
    assert f"    $ {command}\n    {found}\n" in page


def test_a_refused_command_leaves_nothing_behind(folder):
    for command in COMMANDS:
        make_mistakes.message(command)
    assert sorted(path.name for path in folder.iterdir()) == [
        *("empty", "notes.txt", "one_class", "photos", "resnet20.safetensors", "runs")
    ]
    assert [path.name for path in (folder / "runs").iterdir()] == ["a"]
