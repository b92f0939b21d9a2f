"""Runs tasks as jobs of a scheduler: submits them, follows them, and submits some of them again."""

import contextlib
import dataclasses
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from deepjax.errors import InputError, Stopped
from deepjax.progress import Report
from deepjax.study.executors.retries import after_exit
from deepjax.study.executors.tasks import StudyTask
from deepjax.training.preemption import free_stop_signals, handling

POLL_SECONDS = 5.0
# Until files that a job wrote on another machine are visible here: NFS keeps what it knows of a
# folder for up to a minute.
GRACE_SECONDS = 60.0
SILENT_SECONDS = 600.0  # of a scheduler that does not answer
KILLED = 137  # what is assumed of a job that ended without leaving an exit code


@dataclasses.dataclass(frozen=True)
class JobState:
    """A job as its scheduler describes it."""

    text: str
    """In its own words, such as "PENDING (Resources)"."""
    ended: bool = False
    cancelled: bool = False
    """By a person: it is not submitted again."""


class Scheduler(Protocol):
    """What is needed of a scheduler. A job is named by its number."""

    def submit(self, task: str) -> str:
        """Submit a task, and return its job. Raises InputError where that is refused."""
        ...

    def present_job(self, task: str, states: Mapping[str, JobState]) -> str | None:
        """The job of this task that an earlier command submitted, and that has not ended."""
        ...

    def states(self) -> Mapping[str, JobState]:
        """The jobs that it knows. Raises InputError where it does not answer."""
        ...

    def exit_code(self, task: str, job: str) -> int | None:
        """What a job left when it ended; None before, and where it was ended from outside."""
        ...

    def log(self, task: str, job: str) -> Path:
        """The file with the messages of a job."""
        ...

    def cancel_command(self, jobs: Sequence[str]) -> str:
        """The command that cancels jobs."""
        ...


@dataclasses.dataclass
class _Attempt:
    """A job that was submitted for a task."""

    job: str
    failures: int = 0
    saved: int = 0
    ended_at: float | None = None
    """When it was first seen to have ended, by `time.monotonic`."""


@dataclasses.dataclass(frozen=True)
class JobRunner:
    """Runs tasks by a scheduler, as many at a time as it is asked to."""

    scheduler: Scheduler
    retries: int
    """How often a task that failed is submitted again."""
    at_once: int
    """Jobs in the queue at a time; 0: all."""
    say: Callable[[str], None]
    poll: float = POLL_SECONDS
    grace: float = GRACE_SECONDS

    def run(self, tasks: Sequence[StudyTask], report: Report) -> None:
        """Run tasks to their end. Raises InputError that names those that failed."""
        followed = _Followed(self, tasks, report)
        with self._stopping(followed):
            while not followed.step():
                time.sleep(self.poll)
        if followed.failed:
            name, why = next(iter(followed.failed.items()))
            rest = len(followed.failed) - 1
            others = f"; {rest} other{'s' * (rest > 1)} failed too, see above" if rest else ""
            raise InputError(f"task {name} failed: {why}{others}; the same command tries again")

    @contextlib.contextmanager
    def _stopping(self, followed: "_Followed") -> Iterator[None]:
        """A stop of this command leaves the jobs in the queue, and says how to cancel them."""

        def stop(number: int, *_: object) -> None:
            raise Stopped(f"stopped by {signal.Signals(number).name}; {followed.left()}")

        with handling(dict.fromkeys(free_stop_signals(), stop)):
            try:
                yield
            except KeyboardInterrupt:
                raise Stopped(f"interrupted; {followed.left()}") from None


class _Followed:
    """The tasks of one call of `JobRunner.run`."""

    def __init__(self, runner: JobRunner, tasks: Sequence[StudyTask], report: Report) -> None:
        self._runner, self._report = runner, report
        self._tasks = {task.name: task for task in tasks}
        self._waiting = deque((name, 0) for name in self._tasks)
        self._attempts: dict[str, _Attempt] = {}
        self._answered = time.monotonic()
        self._is_first, self._is_refused = True, False
        self._queue = ""
        self.failed: dict[str, str] = {}

    def left(self) -> str:
        """What happens to the jobs when this command ends."""
        jobs = [attempt.job for attempt in self._attempts.values()]
        if not jobs:
            return "no job is in the queue; the same command resumes"
        cancel = self._runner.scheduler.cancel_command(jobs)
        return f"its jobs run on, and the same command follows them; this cancels them: {cancel}"

    def step(self) -> bool:
        """Look at every job once, and submit what is due; whether nothing is left."""
        states = self._states()
        if states is not None:
            if self._is_first:
                self._adopt(states)
                self._is_first = False
            for name in list(self._attempts):
                self._follow(name, states)
            self._submit()
            self._say_queue(states)
        return not self._attempts and not self._waiting

    def _states(self) -> Mapping[str, JobState] | None:
        try:
            states = self._runner.scheduler.states()
        except InputError as error:
            if self._is_first or time.monotonic() - self._answered > SILENT_SECONDS:
                raise InputError(f"{error}; {self.left()}") from error
            return None
        self._answered = time.monotonic()
        return states

    def _adopt(self, states: Mapping[str, JobState]) -> None:
        """Follow the jobs of an earlier command that was stopped."""
        for name, task in self._tasks.items():
            job = self._runner.scheduler.present_job(name, states)
            if job is not None:
                self._attempts[name] = _Attempt(job, saved=task.saved())
        self._waiting = deque(each for each in self._waiting if each[0] not in self._attempts)
        if self._attempts:
            self._runner.say(f"{len(self._attempts)} tasks are in the queue already")

    def _submit(self) -> None:
        limit = self._runner.at_once or len(self._tasks)
        while self._waiting and len(self._attempts) < limit:
            name, failures = self._waiting[0]
            try:
                job = self._runner.scheduler.submit(name)
            except InputError as error:
                if not self._attempts:
                    raise
                if not self._is_refused:  # such as a limit on the jobs of a user
                    self._runner.say(f"{error}; {len(self._waiting)} tasks wait for others to end")
                self._is_refused = True
                return
            self._is_refused = False
            self._waiting.popleft()
            self._attempts[name] = _Attempt(job, failures, self._tasks[name].saved())

    def _say_queue(self, states: Mapping[str, JobState]) -> None:
        """How many jobs are in each state, where that has changed."""
        jobs = [attempt.job for attempt in self._attempts.values()]
        counts = Counter(states[job].text.lower() for job in jobs if job in states)
        queue = ", ".join(f"{count} {text}" for text, count in sorted(counts.items()))
        if queue and queue != self._queue:
            self._runner.say(f"jobs: {queue}")
            self._queue = queue

    def _follow(self, name: str, states: Mapping[str, JobState]) -> None:
        """Report a job's progress, and end it where it has ended."""
        task, attempt = self._tasks[name], self._attempts[name]
        state = states.get(attempt.job, JobState("gone", ended=True))
        if task.is_done():
            self._report(name, task.total, task.total, "done")
            del self._attempts[name]
            return
        retried = f", attempt {attempt.failures + 1}" if attempt.failures else ""
        units = min(task.units_done(), task.total)
        self._report(name, units, task.total, f"{state.text.lower()}{retried}")
        code = self._runner.scheduler.exit_code(name, attempt.job)
        if code is None and not state.ended:
            return
        if not code and not state.cancelled:
            attempt.ended_at = attempt.ended_at or time.monotonic()
            if time.monotonic() - attempt.ended_at < self._runner.grace:
                return
        self._end(name, attempt, state, code)

    def _end(self, name: str, attempt: _Attempt, state: JobState, code: int | None) -> None:
        """An attempt that did not finish its task: submit it again, or give it up."""
        del self._attempts[name]
        log = self._runner.scheduler.log(name, attempt.job)
        if code is None and state.cancelled:
            self.failed[name] = f"its job {attempt.job} was cancelled"
        elif code == 0:
            self.failed[name] = (
                f"its job {attempt.job} ended without an error, and {name} is not there; the study "
                "directory has to be a folder that all machines share"
            )
        else:
            ending = KILLED if code is None else code
            advanced = self._tasks[name].saved() > attempt.saved
            decision = after_exit(ending, attempt.failures, self._runner.retries, advanced)
            why = f"job {attempt.job} {state.text}" if code is None else f"exit {code}"
            why += f": {message}" if (message := last_line(log)) else ""
            if decision.again:
                self._waiting.append((name, decision.failures))
                count = f"retry {decision.failures} of {self._runner.retries}"
                note = count if decision.failures > attempt.failures else "after a save"
                self._runner.say(f"task {name}: {why}; it is submitted again ({note})")
                return
            hint = "; if memory ended, ask for more" if ending == KILLED else ""
            self.failed[name] = f"{why}{hint}; log {log}"
        self._runner.say(f"task {name} failed: {self.failed[name]}")


def last_line(log: Path) -> str:
    """The last line of a log that says something, at most 300 characters."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    # srun's own lines say that a task exited, which is known.
    lines = [line.strip() for line in lines if not line.startswith(("srun:", "slurmstepd:"))]
    return next((line.removeprefix("error: ")[:300] for line in reversed(lines) if line), "")
