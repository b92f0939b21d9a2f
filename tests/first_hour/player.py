"""Environments for users, and what their commands and Python do there."""

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from tests.first_hour.blocks import Block, at_once, blocks_of
from tests.first_hour.users import INTERRUPTED, Part, User, changed, reason_not_run

ROOT = Path(__file__).parents[2]
LIMIT = 1800  # seconds of one block
Outcome = Literal["ok", "FAILED", "not run"]
# Reads blocks as lines of JSON, executes them in one namespace, answers with the error of each.
SESSION = """
import json, sys, traceback
answers, sys.stdout, names = sys.stdout, sys.stderr, {"__name__": "__main__"}
for line in sys.stdin:
    try:
        exec(compile(json.loads(line), "block", "exec"), names)
        error = ""
    except BaseException:
        error = traceback.format_exc(limit=-3)
    print(json.dumps(error), file=answers, flush=True)
"""


@dataclasses.dataclass(frozen=True)
class Step:
    """What became of a block."""

    user: str
    place: str
    text: str
    outcome: Outcome
    seconds: float
    note: str = ""

    def line(self) -> str:
        """For people: one line, or more where it failed."""
        first = self.text.strip().splitlines()[0]
        note = f"  [{self.note}]" if self.note and self.outcome != "FAILED" else ""
        failure = f"\n{self.note}" if self.outcome == "FAILED" else ""
        head = f"{self.outcome:8}{self.seconds:6.0f} s  {self.user:12}{self.place:34}"
        return f"{head}{first[:100]}{note}{failure}"


class Folder:
    """The folder of one page: its environment on the PATH, and a Python that stays."""

    def __init__(self, path: Path, programs: Path, is_clone: bool) -> None:
        self.path, self.programs = path, programs
        if is_clone:
            _run(["git", "clone", "--quiet", f"{ROOT}", f"{path}"])
            if programs.exists():
                (path / ".venv").symlink_to(programs.parent)
        else:
            path.mkdir(parents=True)
        dropped = ("PYTHONPATH", "VIRTUAL_ENV")
        self.environment = {k: v for k, v in os.environ.items() if k not in dropped} | {
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "JAX_PLATFORMS": "cpu",
            "MPLBACKEND": "agg",
            "PYTHON": sys.executable,  # of make install
        }
        self.session: subprocess.Popen[str] | None = None

    def shell(self, command: str) -> str:
        """Run a command; returns why it failed, or nothing."""
        log = self.path / "first_hour.log"
        with log.open("w") as output:
            done = subprocess.run(  # a command of the documentation
                ["/bin/bash", "-c", command], cwd=self.path, env=self.environment,
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, timeout=LIMIT, check=False,
            )  # fmt: skip
        return "" if done.returncode == 0 else f"exit code {done.returncode}\n{_tail(log)}"

    def interrupt(self, command: str) -> str:
        """Run a command, interrupt it during its training; returns why that failed, or nothing."""
        log = self.path / "interrupted.log"
        with log.open("w") as output:
            process = subprocess.Popen(  # a command of the documentation
                ["/bin/bash", "-c", f"exec {command}"], cwd=self.path, env=self.environment,
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
        end = time.monotonic() + LIMIT
        while process.poll() is None and "loss" not in log.read_text():
            if time.monotonic() > end:
                process.kill()
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        code = process.wait(LIMIT)
        return "" if code == 130 else f"exit code {code} in place of 130\n{_tail(log)}"

    def python(self, code: str) -> str:
        """Execute code after all earlier code of this page; returns the error, or nothing."""
        if self.session is None:
            with (self.path / "python.log").open("w") as log:
                self.session = subprocess.Popen(  # code of the documentation
                    [f"{self.programs / 'python'}", "-c", SESSION], cwd=self.path, text=True,
                    env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                    stderr=log,
                )  # fmt: skip
        assert self.session.stdin and self.session.stdout
        self.session.stdin.write(json.dumps(code) + "\n")
        self.session.stdin.flush()
        answer = self.session.stdout.readline()
        return json.loads(answer) if answer else f"Python ended\n{_tail(self.path / 'python.log')}"

    def file(self, name: str, text: str) -> str:
        """Save a file."""
        (self.path / name).write_text(text + "\n")
        return ""

    def close(self) -> None:
        """End the Python of this page."""
        if self.session is not None:
            self.session.communicate()


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr[-2000:]}")


def _tail(log: Path, characters: int = 1500) -> str:
    return log.read_text()[-characters:]


def make_environment(kind: Literal["clone", "wheel"], out: Path) -> Path:
    """The programs of a fresh clone after `make install`, or of an environment with the wheel."""
    place = out / kind
    if kind == "clone":
        _run(["git", "clone", "--quiet", f"{ROOT}", f"{place}"])
        _run(["make", "-C", f"{place}", f"PYTHON={sys.executable}", "install"])
        return place / ".venv" / "bin"
    _run([sys.executable, "-m", "venv", f"{place}"])
    pip = [f"{place / 'bin' / 'python'}", "-m", "pip", "--quiet"]
    _run([*pip, "wheel", "--no-deps", "--wheel-dir", f"{out / 'dist'}", f"{ROOT}"])
    _run([*pip, "install", f"{next((out / 'dist').glob('*.whl'))}"])
    return place / "bin"


def play(user: User, out: Path, programs: Path) -> list[Step]:
    """Everything that a user does, printed as it is done."""
    steps: list[Step] = []
    folder: Folder | None = None
    for number, part in enumerate(user.parts):
        if folder is None or not part.continues:
            if folder is not None:
                folder.close()
            path = out / "users" / user.name / str(number)
            folder = Folder(path, programs, user.environment == "clone")
            if user.given:
                steps.append(_step(user, "given", user.given, "what the user has", folder.python))
        steps += _play_part(user, part, folder)
        if number == 0:
            steps += [_step(user, "own", text, note, folder.shell) for text, note in user.then]
    if folder is not None:
        folder.close()
    return steps


def _play_part(user: User, part: Part, folder: Folder) -> list[Step]:
    steps = []
    for block in at_once(blocks_of(part.page, (ROOT / part.page).read_text())):
        if not part.has(block):
            continue
        if reason := reason_not_run(block):
            steps.append(Step(user.name, block.place, block.text, "not run", 0, reason))
            print(steps[-1].line(), flush=True)
        else:
            steps += _play_block(user, block, folder)
    return steps


def _play_block(user: User, block: Block, folder: Folder) -> list[Step]:
    text, changes = changed(block.text)
    if block.kind == "file":
        act = functools.partial(folder.file, block.title)
    else:
        act = folder.shell if block.kind == "shell" else folder.python
    steps = []
    if text.startswith(INTERRUPTED):
        steps.append(_step(user, block.place, text, "interrupted", folder.interrupt))
    return [*steps, _step(user, block.place, text, "; ".join(changes), act)]


def _step(user: User, place: str, text: str, note: str, act) -> Step:
    begin = time.monotonic()
    try:
        error = act(text)
    except subprocess.TimeoutExpired:
        error = f"not done after {LIMIT} s"
    seconds = time.monotonic() - begin
    step = Step(user.name, place, text, "FAILED" if error else "ok", seconds, error or note)
    print(step.line(), flush=True)
    return step
