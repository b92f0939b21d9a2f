"""`deepjax study`: the studies of the clone, by name."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deepjax.cli import study
from deepjax.cli.__main__ import start
from deepjax.errors import InputError
from experiments.run_studies import SETS

ROOT = Path(__file__).parents[2]


def test_list_has_each_study_with_its_title_and_presets(capsys):
    start(["study", "list"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(SETS["all"])
    start(["study", "list", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in found] == list(SETS["all"])
    [degradation] = [line for line in lines if line.startswith("degradation ")]
    assert degradation.endswith("[quick, small, gpu]") and "depth" in degradation.lower()


@pytest.mark.parametrize(
    ("given", "command"),
    [
        (["degradation", "--preset", "small"], ["degradation.py", "--preset", "small"]),
        (["lecture", "--preset", "quick"],
         ["run_studies.py", "--studies", "lecture", "--preset", "quick"]),
        (["all"], ["run_studies.py", "--studies", "all"]),
    ],
)  # fmt: skip
def test_run_becomes_the_script(given, command, monkeypatch):
    executed = []
    monkeypatch.setattr(os, "execv", lambda *arguments: executed.append(arguments))
    start(["study", "run", *given])
    [(program, (python, script, *rest))] = executed
    assert program == python == sys.executable
    assert [str(Path(script).relative_to(ROOT / "experiments")), *rest] == command


@pytest.mark.system
def test_the_script_runs_in_any_folder(tmp_path):
    command = [sys.executable, "-m", "deepjax", "study", "run", "degradation", "--help"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert "--preset" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "degredation"], "study 'degredation' is unknown; did you mean 'degradation'"),
        (["rn"], "action 'rn' is unknown; did you mean 'run'"),
        (["list", "x"], "unexpected: x; options begin with --"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    with pytest.raises(InputError) as raised:
        start(["study", *arguments])
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_an_installed_package_has_no_studies(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study.deepjax, "__file__", str(tmp_path / "deepjax" / "__init__.py"))
    with pytest.raises(InputError, match="clone it, and start this in its folder"):
        start(["study", "list"])


@pytest.mark.parametrize("arguments", [[], ["--help"], ["run"], ["run", "-h"]])
def test_help(arguments, capsys):
    start(["study", *arguments])
    assert "deepjax study run degradation --preset small" in capsys.readouterr().out
