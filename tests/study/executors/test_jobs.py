"""Jobs of a scheduler that ends them as a table says: what is submitted, and what is an error."""

import dataclasses
import os
import signal
from collections import Counter
from pathlib import Path

import pytest

from deepjax.errors import InputError, Stopped
from deepjax.study.executors.jobs import JobRunner, JobState, last_line
from deepjax.study.executors.tasks import StudyTask

LOST, CANCELLED = "lost", "cancelled"  # jobs that end without an exit code


@dataclasses.dataclass
class Queue:
    """Every job ends when it is looked at for the second time, as the next entry of its task."""

    folder: Path
    endings: dict[str, list[int | str]]
    present: dict[str, str] = dataclasses.field(default_factory=dict)
    limit: int = 100
    silent: int = 0
    submitted: list[str] = dataclasses.field(default_factory=list)
    done: set[str] = dataclasses.field(default_factory=set)
    saved: Counter[str] = dataclasses.field(default_factory=Counter)
    most: int = 0

    def __post_init__(self) -> None:
        self._jobs: dict[str, str] = {job: task for task, job in self.present.items()}
        self._states = dict.fromkeys(self._jobs, JobState("RUNNING"))
        self._codes: dict[str, int] = {}

    def submit(self, task: str) -> str:
        if sum(not state.ended for state in self._states.values()) >= self.limit:
            raise InputError("job submit limit")
        self.submitted.append(task)
        job = str(len(self.submitted))
        self._jobs[job], self._states[job] = task, JobState("RUNNING")
        return job

    def present_job(self, task, states):
        return self.present.get(task)

    def states(self):
        if self.silent:
            self.silent -= 1
            raise InputError("squeue failed")
        seen = dict(self._states)
        self.most = max(self.most, sum(not state.ended for state in seen.values()))
        for job, state in seen.items():
            if not state.ended:
                self._end(job, self.endings[self._jobs[job]].pop(0))
        return seen

    def _end(self, job: str, ending: int | str) -> None:
        task = self._jobs[job]
        if isinstance(ending, str):
            self._states[job] = JobState(ending, ended=True, cancelled=ending == CANCELLED)
            return
        self._states[job], self._codes[job] = JobState("COMPLETED", ended=True), ending
        if ending == 0:
            self.done.add(task)
        self.saved[task] += ending == 143
        self.log(task, job).write_text("a line\nerror: depth is 21\n\nsrun: error: exit\n")

    def exit_code(self, task, job):
        return self._codes.get(job)

    def log(self, task, job):
        return self.folder / f"{job}.log"

    def cancel_command(self, jobs):
        return f"cancel {' '.join(jobs)}"


def run(queue: Queue, retries: int = 2, at_once: int = 0) -> list[str]:
    """Run all tasks of a queue; returns what was said."""
    tasks = [
        StudyTask(
            name,
            total=10,
            run=lambda report: None,
            is_done=lambda name=name: name in queue.done,
            units_done=lambda: 0,
            saved=lambda name=name: queue.saved[name],
        )
        for name in queue.endings
    ]
    lines: list[str] = []
    runner = JobRunner(queue, retries, at_once, lines.append, poll=0.0, grace=0.0)
    runner.run(tasks, lambda task, done, total, note="": None)
    return lines


@pytest.mark.parametrize(
    ("endings", "attempts"),
    [
        ([0], 1),
        ([137, 0], 2),
        ([75, 139, 0], 3),
        ([LOST, 0], 2),
        ([143, 143, 143, 143, 143, 0], 6),  # each saved a later checkpoint
    ],
)
def test_what_was_killed_is_submitted_again_until_it_is_done(tmp_path, endings, attempts):
    queue = Queue(tmp_path, {"a": endings, "b": [0]})
    run(queue)
    assert Counter(queue.submitted) == {"a": attempts, "b": 1}


@pytest.mark.parametrize(
    ("endings", "attempts", "message"),
    [
        ([2], 1, r"task a failed: exit 2: depth is 21; log .*\.log; the same command"),
        ([1], 1, "exit 1"),
        ([137, 137, 137], 3, "exit 137: depth is 21; if memory ended, ask for more"),
        ([137, 75, 2], 3, "exit 2"),
        ([LOST, LOST, LOST], 3, "job 4 lost"),
        ([CANCELLED], 1, "its job 1 was cancelled"),
    ],
)
def test_a_failure_is_an_error_at_the_end_and_the_others_run(tmp_path, endings, attempts, message):
    queue = Queue(tmp_path, {"a": endings, "b": [0]})
    with pytest.raises(InputError, match=message):
        run(queue)
    assert queue.submitted.count("a") == attempts and queue.done == {"b"}


def test_several_failures_are_one_line(tmp_path):
    with pytest.raises(InputError, match=r"task a failed.*; 2 others failed too, see above"):
        run(Queue(tmp_path, {name: [2] for name in "abc"}))


def test_an_end_without_a_result_names_the_shared_folder(tmp_path):
    queue = Queue(tmp_path, {"a": [0]})
    queue.done = frozenset()  # type: ignore[assignment]
    queue._end = lambda job, ending: (  # what is written on another machine is not seen here
        queue._states.update({job: JobState("COMPLETED", ended=True)}),
        queue._codes.update({job: 0}),
    )
    with pytest.raises(InputError, match="a folder that all machines share"):
        run(queue)


@pytest.mark.parametrize(("at_once", "most"), [(0, 5), (2, 2), (9, 5)])
def test_as_many_jobs_at_a_time_as_asked_for(tmp_path, at_once, most):
    queue = Queue(tmp_path, {name: [0] for name in "abcde"})
    run(queue, at_once=at_once)
    assert queue.most == most and sorted(queue.submitted) == list("abcde")


def test_a_limit_of_the_scheduler_is_waited_for(tmp_path):
    queue = Queue(tmp_path, {name: [0] for name in "abcde"}, limit=2)
    lines = run(queue)
    assert queue.most == 2 and len(queue.submitted) == 5
    assert "job submit limit; 3 tasks wait for others to end" in lines
    with pytest.raises(InputError, match="job submit limit"):
        run(Queue(tmp_path, {"a": [0]}, limit=0))


def test_jobs_of_an_earlier_command_are_followed_and_not_submitted_again(tmp_path):
    queue = Queue(tmp_path, {"a": [0], "b": [0]}, present={"a": "17"})
    assert "1 tasks are in the queue already" in run(queue)
    assert queue.submitted == ["b"]


def test_a_scheduler_that_does_not_answer_is_asked_again(tmp_path):
    queue = Queue(tmp_path, {"a": [137, 0]})
    answer = queue.states
    asked = iter([False, True, True, *[False] * 9])  # silent for two of the questions

    def states():
        queue.silent = next(asked)
        return answer()

    queue.states = states  # type: ignore[method-assign]
    run(queue)
    assert queue.submitted == ["a", "a"]
    with pytest.raises(InputError, match="squeue failed; no job is in the queue"):
        run(Queue(tmp_path, {"a": [0]}, silent=1))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_leaves_the_jobs_and_says_how_to_cancel_them(tmp_path, number):
    queue = Queue(tmp_path, {"a": [0], "b": [0]})
    queue._end = lambda job, ending: os.kill(os.getpid(), number)
    with pytest.raises(
        Stopped, match="the same command follows them; this cancels them: cancel 1 2"
    ):
        run(queue)


def test_the_last_line_of_a_log_is_that_of_the_program(tmp_path):
    log = tmp_path / "log"
    assert last_line(log) == ""
    log.write_text("first\nerror: JAX finds no device\nsrun: error: node1: task 0: Exited\n\n")
    assert last_line(log) == "JAX finds no device"
