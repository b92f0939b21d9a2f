"""Processes of a study: they stay for a second round, and an error or a death of one of them reaches the study."""

import functools
import os
import signal
import time

import pytest

from deepjax.errors import InputError
from deepjax.study.workers import crew


def tell_process(report):
    """A task that says which process runs it."""
    report("process", os.getpid(), 1)


def fail(error, report):
    """A task that finds its input wrong."""
    raise error


def die(report):
    """A task that the system kills, as it does where memory ends."""
    os.kill(os.getpid(), signal.SIGKILL)


def wait(report):
    """A task that is at work until somebody stops it."""
    report("waits", os.getpid(), 1)
    time.sleep(600)


def test_second_round_runs_in_the_processes_of_the_first():
    seen = []
    with crew(jobs=1) as run_all:
        for _ in range(2):
            run_all([tell_process, tell_process], lambda name, done, total: seen.append(done))
    assert len(seen) == 4
    assert len(set(seen)) == 1
    assert seen[0] != os.getpid()


def test_no_more_processes_than_tasks_and_more_when_more_come():
    seen = []
    with crew(jobs=3) as run_all:
        run_all([tell_process], lambda name, done, total: seen.append(done))
        first = set(seen)
        run_all([tell_process] * 12, lambda name, done, total: seen.append(done))
    assert len(first) == 1
    assert 1 <= len(set(seen)) <= 3


def test_error_of_a_task_is_raised_in_the_study():
    error = InputError("depth is 21; allowed: 6n + 2")
    with pytest.raises(InputError, match=r"6n \+ 2"), crew(jobs=2) as run_all:
        run_all([functools.partial(fail, error), tell_process], lambda *progress: None)


def test_death_of_a_process_is_told():
    with pytest.raises(RuntimeError, match=r"died \(exit -9\)"), crew(jobs=1) as run_all:
        run_all([die], lambda *progress: None)


def test_leaving_by_an_error_stops_what_is_at_work():
    seen = []

    def interrupt(name, done, total):
        seen.append(done)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), crew(jobs=1) as run_all:
        run_all([wait], interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(seen[0], 0)
