"""Run the studies of a clone: every claim of the lecture, with rules fixed beforehand.

    deepjax study list                              # names, questions, presets
    deepjax study run degradation                   # a preset of minutes, without verdicts
    deepjax study run degradation --preset small    # judged
    deepjax study run all                           # `make studies`

They are the scripts of experiments/, which are not part of the installed package.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import deepjax
from deepjax.errors import InputError, unknown_name_error

SCRIPTS, ALL = "experiments", "run_studies"


def scripts_folder() -> Path:
    """The folder of the studies, in the current folder or next to the package.

    Raises InputError where there is none.
    """
    for root in (Path.cwd(), Path(deepjax.__file__).parents[1]):
        if (root / SCRIPTS / f"{ALL}.py").exists():
            return root / SCRIPTS
    raise InputError(
        "there are no studies here: they are scripts of the repository, not of the installed "
        "package; clone it, and start this in its folder"
    )


def study_names(folder: Path) -> tuple[str, ...]:
    """The names of the studies, those of the lecture first."""
    sys.path.insert(0, str(folder.parent))
    return importlib.import_module(f"{SCRIPTS}.{ALL}").SETS["all"]


def _list(arguments: Sequence[str]) -> None:
    """Print the name, the question and the presets of each study."""
    if arguments:
        raise InputError(f"list takes no option, given {' '.join(arguments)}")
    names = study_names(scripts_folder())
    width = max(map(len, names))
    for name in names:
        study = importlib.import_module(f"{SCRIPTS}.{name}").STUDY
        print(f"{name:{width}}  {study.title}  [{', '.join(study.presets)}]")


def _run(arguments: Sequence[str]) -> None:
    """Replace this process by the script of a study, or of all."""
    name, *rest = arguments or [""]
    folder = scripts_folder()
    names = {"all": ALL} | {each: each for each in study_names(folder)}
    if name not in names:
        raise unknown_name_error("study", name, list(names), listed_by="deepjax study list")
    script = str(folder / f"{names[name]}.py")
    os.execv(sys.executable, [sys.executable, script, *rest])  # noqa: S606  # no shell


ACTIONS = {"list": _list, "run": _run}


def start(arguments: Sequence[str]) -> None:
    """The command: an action. Raises InputError for an unknown one."""
    action, *rest = arguments or ["--help"]
    if action in ("--help", "-h"):
        print(__doc__)
        return
    if action not in ACTIONS:
        raise unknown_name_error("action", action, ACTIONS)
    ACTIONS[action](rest)
