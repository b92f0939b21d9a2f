"""Run the studies of a clone: every claim of the lecture, with rules fixed beforehand.

    deepjax study list                              # names, questions, presets
    deepjax study run degradation                   # a preset of minutes, without verdicts
    deepjax study run degradation --preset small    # judged
    deepjax study run lecture                       # all of the lecture, judged; also beyond, all
    deepjax study run degradation --preset small --executor slurm   # a job for each run
    deepjax study run degradation --help            # the options of a study

They are the scripts of experiments/, which are not part of the installed package.
"""

import dataclasses
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import deepjax
from deepjax.command_line import parse, print_json, run_action
from deepjax.errors import InputError, unknown_name_error
from deepjax.help_page import action_page

SEVERAL = "run_studies.py"  # the script of several studies


@dataclasses.dataclass(frozen=True)
class _List:
    """List the studies: names, questions and presets."""

    json: bool = False
    """Print JSON."""


def scripts_folder() -> Path:
    """The folder of the studies, in the current folder or next to the package.

    Raises InputError where there is none.
    """
    for root in (Path.cwd(), Path(deepjax.__file__).parents[1]):
        if (root / "experiments" / SEVERAL).exists():
            return root / "experiments"
    raise InputError(
        "there are no studies here: they are scripts of the repository, not of the installed "
        "package; clone it, and start this in its folder"
    )


def study_sets(folder: Path) -> Mapping[str, Sequence[str]]:
    """The names of the studies by set; "all" has those of the lecture first."""
    sys.path.insert(0, str(folder.parent))
    return importlib.import_module("experiments.run_studies").SETS


def _list(arguments: Sequence[str]) -> None:
    """Print the name, the question and the presets of each study."""
    options = parse(_List, arguments, page=action_page(_List, str(__doc__), "study list"))
    names = study_sets(scripts_folder())["all"]
    studies = {name: importlib.import_module(f"experiments.{name}").STUDY for name in names}
    if options.json:
        print_json(
            [
                {"name": name, "question": study.title, "presets": [*study.presets]}
                for name, study in studies.items()
            ]
        )
        return
    width = max(map(len, names))
    for name, study in studies.items():
        print(f"{name:{width}}  {study.title}  [{', '.join(study.presets)}]")


def _run(arguments: Sequence[str]) -> None:
    """Replace this process by the script of a study, or of several."""
    name, *rest = arguments or ["--help"]
    if name in ("--help", "-h"):
        print(__doc__)
        return
    folder = scripts_folder()
    sets = study_sets(folder)
    names = (*sets, *sets["all"])
    if name not in names:
        raise unknown_name_error("study", name, names, listed_by="deepjax study list")
    script = [str(folder / SEVERAL), "--studies", name]
    if name not in sets:
        script = [str(folder / f"{name}.py")]
    os.execv(sys.executable, [sys.executable, *script, *rest])  # noqa: S606  # no shell


ACTION_OPTIONS: dict[str, Any] = {"list": _List}
ACTIONS = {"list": _list, "run": _run}


def start(arguments: Sequence[str]) -> None:
    """The command: an action. Raises InputError for an unknown one."""
    run_action(ACTIONS, arguments, str(__doc__))
