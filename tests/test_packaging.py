"""What a distribution says of itself: one version, types, bounds, a Dockerfile that can copy.

`make dist-check` builds the wheel and the sdist and uses them in clean environments.
"""

import fnmatch
import importlib.metadata
import re
import tomllib
from importlib import resources
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import deepjax

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_the_version_is_one():
    assert PROJECT["dynamic"] == ["version"]
    assert f"\nversion: {deepjax.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {deepjax.__version__} " in (ROOT / "CHANGELOG.md").read_text()


def test_type_checkers_see_the_annotations():
    """PEP 561."""
    assert resources.files("deepjax").joinpath("py.typed").is_file()


@pytest.mark.parametrize("name", ["jax", "orbax-checkpoint", "tyro"])
def test_the_next_major_version_is_excluded(name):
    [bounded] = [each for each in map(Requirement, PROJECT["dependencies"]) if each.name == name]
    version = importlib.metadata.version(name)
    parts = list(map(int, version.split(".")[:2]))
    following = f"0.{parts[1] + 10}" if name == "jax" else f"{parts[0] + 1}.0"
    assert version in bounded.specifier and following not in bounded.specifier


def test_the_extras_that_the_documentation_names_exist():
    pages = [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]
    named = {
        name
        for page in pages
        for group in re.findall(r"(?:deepjax|\.)\[([a-z0-9,]+)\]'", page.read_text())
        for name in group.split(",")
    }
    assert {"export", "hub", "prepare"} <= named <= {*PROJECT["optional-dependencies"], "test"}


def test_the_dockerfile_copies_what_is_there_and_ends_as_another_user_than_root():
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line[0] == "!"]
    copied = [
        source
        for line in re.findall(r"^COPY (.*)$", DOCKERFILE, re.MULTILINE)
        for source in line.split()[:-1]
    ]
    assert len(copied) >= 5
    for source in copied:
        assert (ROOT / source).exists()
        assert any(fnmatch.fnmatch(source, pattern) for pattern in allowed)
    assert re.findall(r"^USER (.*)$", DOCKERFILE, re.MULTILINE)[-1] == "1000"
    assert re.search(r"^FROM python:3\.1[123]-slim$", DOCKERFILE, re.MULTILINE)
