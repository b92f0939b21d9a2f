"""docs/mistakes.md: every command is refused in one line, as the page says."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("make_mistakes", ROOT / "docs" / "make_mistakes.py")
make_mistakes = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(make_mistakes)
COMMANDS = [command for commands in make_mistakes.MISTAKES.values() for command in commands]


@pytest.fixture(scope="module")
def folder():
    with make_mistakes.inputs() as there:
        yield there


@pytest.fixture(scope="module")
def page():
    return make_mistakes.PAGE.read_text()


def without_lists(text):
    """Without the names of data sets, to which other tests add theirs."""
    return re.sub(r"allowed: [^\n]*, the path of a folder of images", "allowed: ...", text)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_is_refused_as_the_page_says(command, folder, page):
    found = make_mistakes.message(command).replace(f"{folder}/", "")
    assert found and "\n" not in found
    assert without_lists(f"    $ {command}\n    {found}\n") in without_lists(page)


def test_a_refused_command_leaves_nothing_behind(folder):
    for command in COMMANDS:
        make_mistakes.message(command)
    assert sorted(path.name for path in folder.iterdir()) == [
        *("empty", "notes.txt", "one_class", "photos", "resnet20.safetensors", "runs")
    ]
    assert [path.name for path in (folder / "runs").iterdir()] == ["a"]
