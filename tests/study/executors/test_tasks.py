"""Tasks of a study: their names, their order, their command, and which one a process runs."""

from pathlib import Path

import pytest

from deepjax.errors import InputError
from deepjax.study.arms.rates import SelectedRate, write_rates
from deepjax.study.executors.study_tasks import study_tasks
from deepjax.study.executors.tasks import named_tasks, task_command
from deepjax.study.prepared import prepare
from deepjax.study.runner import run_study
from deepjax.study.stats.intervals import PILOT_SEEDS
from deepjax.study.study import Options
from tests.study import toy

QUICK = [
    "runs/deep/lr0.8-seed0",
    "runs/deep/lr0.8-seed1",
    "runs/shallow/lr0.8-seed0",
    "runs/shallow/lr0.8-seed1",
    "runs/shallow_again/lr0.8-seed500",  # an A/A control: 500 is added
    "runs/shallow_again/lr0.8-seed501",
    "measured/seed0",
    "measured/seed1",
]


def tasks_of(tmp_path: Path, **options):
    return study_tasks(prepare(toy.STUDY, Options(output_dir=tmp_path, **options)))


def test_a_study_has_a_task_for_each_run_and_each_measurement(tmp_path):
    found = tasks_of(tmp_path)
    assert [*found] == QUICK
    assert {task.total for task in found.values()} == {12, 100}  # steps, parts
    assert not any(task.is_done() for task in found.values())


def test_pilots_have_the_rates_of_the_grid_and_its_extensions(tmp_path):
    """By factors of 2 from 1e-5 to 13; what follows the pilots needs the rates that they select."""
    found = tasks_of(tmp_path, preset="small", pilots=True)
    deep = [name for name in found if name.startswith("runs/deep/")]
    # 0.2 * 2**-14 is above 1e-5, and 0.8 * 2**4 is below 13.
    assert len(deep) == (3 + 14 + 4) * PILOT_SEEDS
    assert "runs/deep/lr0.8-seed1000" in found and "runs/deep/lr12.8-seed1005" in found
    assert not any(name.startswith(("measured", "runs/shallow_again")) for name in found)
    rates = {name: SelectedRate(0.4, 0.0, 0.0) for name in ("deep", "shallow")}
    write_rates(tmp_path / "rates.json", "toy-small", rates)
    found = tasks_of(tmp_path, preset="small", pilots=True)
    assert "runs/shallow_again/lr0.4-seed1500" in found and "measured/seed1005" in found


@pytest.mark.parametrize(
    ("environment", "names"),
    [
        ({}, QUICK),
        ({"JOB_COMPLETION_INDEX": "0"}, QUICK[:1]),
        ({"JOB_COMPLETION_INDEX": "7"}, QUICK[7:]),
        ({"SLURM_ARRAY_TASK_ID": "4"}, QUICK[4:5]),
    ],
)
def test_of_several_tasks_a_process_runs_that_of_its_number(tmp_path, environment, names):
    found = named_tasks(QUICK, tasks_of(tmp_path), environment)
    assert [task.name for task in found] == names


def test_one_task_needs_no_number(tmp_path):
    """A job of one task may itself be one of an array, or of an indexed Job."""
    (task,) = named_tasks(QUICK[3:4], tasks_of(tmp_path), {"SLURM_ARRAY_TASK_ID": "12"})
    assert task.name == QUICK[3]


@pytest.mark.parametrize(
    ("names", "environment", "message"),
    [
        (["runs/deep/lr0.8-seed7"], {}, "task 'runs/deep/lr0.8-seed7' is unknown; did you mean"),
        (QUICK, {"JOB_COMPLETION_INDEX": "8"}, "JOB_COMPLETION_INDEX is '8'; allowed: 0 to 7"),
        (QUICK, {"SLURM_ARRAY_TASK_ID": "x"}, "SLURM_ARRAY_TASK_ID is 'x'"),
    ],
)
def test_tasks_that_there_are_not_are_refused(tmp_path, names, environment, message):
    with pytest.raises(InputError, match=message):
        named_tasks(names, tasks_of(tmp_path), environment)


def test_the_command_of_a_task_has_the_options_of_the_study():
    options = Options("small", pilots=True, output_dir=Path("/x y"), executor="slurm", jobs=3)
    given = {"executor": "local", "jobs": 0}
    assert task_command(["python", "study.py"], options, ["a", "b"], given) == [
        *("python", "study.py", "--preset", "small", "--pilots", "--output-dir", "/x y"),
        *("--task", "a", "b"),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": ("a",), "arm": "deep"}, "task is"),
        ({"task": ("a",), "executor": "slurm"}, "task is"),
        ({"executor_options": ("time=5",)}, "executor_options is"),
        ({"retries": -1}, "retries is -1"),
        ({"executor": "kubernetes", "pilots": True}, "executor is 'kubernetes'; allowed: local"),
        ({"executor": "kubernetes", "arm": "deep"}, "executor is 'kubernetes'"),
    ],
)
def test_options_that_exclude_each_other_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        Options("small", **options)


def test_an_unknown_task_leaves_nothing(tmp_path):
    with pytest.raises(InputError, match="task 'runs/deep' is unknown"):
        run_study(toy.STUDY, Options(output_dir=tmp_path / "out", task=("runs/deep",)))
    assert list(tmp_path.iterdir()) == []
