"""Worker processes: kept for a second round; an error or a death is raised in the study."""

import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from deepjax.errors import InputError
from deepjax.study.workers import worker_pool


def tell_process(report):
    """A task that says which process runs it."""
    report("process", os.getpid(), 1)


def fail(error, report):
    """A task that finds its input wrong after a while."""
    for part in range(3):
        report("part", part, 3)
    raise error


def die(report):
    """A task that the system kills, as it does where memory ends."""
    os.kill(os.getpid(), signal.SIGKILL)


def wait(report):
    """A task that is at work until somebody stops it."""
    report("waits", os.getpid(), 1)
    time.sleep(600)


def alive(process):
    """Whether there is such a process, on any system."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_second_round_runs_in_the_processes_of_the_first():
    seen = []
    with worker_pool(jobs=1) as run_all:
        for _ in range(2):
            run_all([tell_process, tell_process], lambda name, done, total: seen.append(done))
    assert len(seen) == 4
    assert len(set(seen)) == 1
    assert seen[0] != os.getpid()


@pytest.mark.system
def test_no_more_processes_than_tasks_and_more_when_more_come():
    counts = []
    with worker_pool(jobs=3) as run_all:
        for tasks in (1, 12):
            run_all([tell_process] * tasks, lambda *progress: None)
            counts.append(len(multiprocessing.active_children()))
    assert counts == [1, 3]
    assert not multiprocessing.active_children()


@pytest.mark.system
def test_error_of_a_task_is_raised_in_the_study():
    error = InputError("depth is 21; allowed: 6n + 2")
    with pytest.raises(InputError, match=r"6n \+ 2"), worker_pool(jobs=2) as run_all:
        run_all([functools.partial(fail, error), tell_process], lambda *progress: None)


@pytest.mark.system
def test_error_is_found_behind_progress_that_is_slow_to_hear():
    error = InputError("depth is 21; allowed: 6n + 2")
    with pytest.raises(InputError), worker_pool(jobs=1) as run_all:
        run_all([functools.partial(fail, error)], lambda *progress: time.sleep(1))


@pytest.mark.system
@pytest.mark.parametrize("rounds", [0, 1])
def test_death_of_a_process_is_told(rounds):
    """At work, or while it waits for the next round."""
    with (
        pytest.raises(RuntimeError, match=r"killed by signal 9.*fewer --jobs.*resumes"),
        worker_pool(jobs=1) as run_all,
    ):
        for _ in range(rounds):
            run_all([tell_process], lambda name, done, total: None)
            (worker,) = multiprocessing.active_children()
            os.kill(worker.pid, signal.SIGKILL)
        run_all([die], lambda *progress: None)


STUDY = """
from tests.study import test_workers
from deepjax.study.workers import worker_pool

if __name__ == "__main__":
    with worker_pool(jobs=2) as run_all:
        run_all([test_workers.tell_process] * 2, lambda name, done, total: print(done, flush=True))
        run_all([test_workers.wait], lambda name, done, total: print(done, flush=True))
"""


@pytest.mark.system
def test_processes_end_when_their_study_is_killed(tmp_path):
    script = tmp_path / "study.py"
    script.write_text(STUDY)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(["", *sys.path])}
    with subprocess.Popen(
        [sys.executable, script], env=environment, stdout=subprocess.PIPE, text=True
    ) as study:
        workers = {int(study.stdout.readline()) for _ in range(3)}
        study.kill()
    until = time.monotonic() + 60
    while any(map(alive, workers)):
        assert time.monotonic() < until, "a process outlives its study"
        time.sleep(0.1)


@pytest.mark.system
def test_leaving_by_an_error_stops_what_is_at_work():
    seen = []

    def interrupt(name, done, total):
        seen.append(done)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), worker_pool(jobs=1) as run_all:
        run_all([wait], interrupt)
    assert not alive(seen[0])
