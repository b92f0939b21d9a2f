"""Processes that are killed or told to stop, alone and in pairs."""

import dataclasses
import functools
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from deepjax.command_line import EXIT_STOPPED
from deepjax.training.preemption import EXIT_HUNG
from tests.faults.marked import SAVED, STEPPED
from tests.faults.runs import CONFIG, complete, finish, outcome, reference, start
from tests.faults.tally import Tally

PHASES = ("compile", "train", "save", "eval", "last step", "final evaluation", "twice", "train")


# 60 steps and 31 checkpoints: one run is killed many times.
LONG = dataclasses.replace(CONFIG, epochs=12)
LONG_FLAGS = ("--epochs", "12")
MARKED = "tests/faults/marked.py"


def sigkill(tries: int, work: Path, seed: int = 0) -> Tally:
    """SIGKILL between a start's first step and its last save; restarts until the run ends."""
    tally = Tally(
        "SIGKILL at random moments of training and saving",
        "final state and logs bitwise equal, no partial folders left",
    )
    expected = reference(work, LONG)
    rng = random.Random(seed)
    runs = saving = 0
    while tally.tried < tries:
        out = work / f"killed-{runs}"
        hits = 0
        is_saving = functools.partial(_has_partial, out)
        while tally.tried + hits < tries and (
            hit := killed_run(out, rng.uniform(0.0, 1.0), is_saving)
        ):
            hits += 1
            saving += hit == "saving"
        complete(out, LONG)
        same = outcome(out) == expected
        for number in range(hits):
            tally.count(same, f"run {runs}, kill {number + 1}: the end differs")
        runs += 1
    tally.note = f"({runs} runs; {saving} of the kills fell into a save)"
    return tally


def _has_partial(out: Path) -> bool:
    return any((out / "checkpoints").glob("*.partial"))


def killed_run(out: Path | str, seconds: float, is_saving: Callable[[], bool]) -> str | None:
    """Start the run and kill it some seconds after its first step, "training" or "saving".

    None if everything was saved by then. is_saving: whether the kill left a partial checkpoint.
    """
    process = start(out, *LONG_FLAGS, script=MARKED)
    stepped = wait_for_first_step(process)
    time.sleep(seconds)
    process.kill()
    said, errors = process.communicate()
    if process.returncode != -signal.SIGKILL or SAVED in said:
        assert stepped or process.returncode == 0, errors
        return None
    return "saving" if is_saving() else "training"


def wait_for_first_step(process: subprocess.Popen[str]) -> bool:
    """Whether the first step of this start has ended; False when the process ended before."""
    assert process.stdout is not None
    return any(line.strip() == STEPPED for line in iter(process.stdout.readline, ""))


def sigterm(tries: int, work: Path, seed: int = 0) -> Tally:
    """SIGTERM in each phase, sent by the process to itself; then the run is resumed."""
    tally = Tally(
        "SIGTERM in train, eval, compile, save, last step",
        "exit 143 within 5 s of the step's end, nothing lost",
    )
    expected = reference(work)
    slowest = 0.0
    for turn in range(tries):
        phase, out = PHASES[turn % len(PHASES)], work / f"stopped-{turn}"
        when = 1 + (turn // len(PHASES)) % 3 + seed
        code, said = finish(
            start(out, script="tests/faults/victim.py", FAULT_PHASE=phase, FAULT_WHEN=str(when))
        )
        marks = [float(line.split()[1]) for line in said.splitlines() if line.startswith("ENDED")]
        seconds = marks[-1] if marks else float("inf")
        slowest = max(slowest, seconds)
        complete(out)
        fine = code == 143 and seconds <= 5 and outcome(out) == expected
        last = said.strip().splitlines()[-1:] if said.strip() else []
        tally.count(
            fine,
            f"{phase} {when}: exit {code}, {seconds:.1f} s, "
            f"equal: {outcome(out) == expected}, {last}",
        )
    tally.note = f"(slowest {slowest:.1f} s)"
    return tally


def one_of_two(tries: int, work: Path, seed: int = 0, heartbeat: int = 10) -> Tally:
    """A signal to one of two processes: the other ends, and a restart ends bitwise equal."""
    tally = Tally(
        "SIGKILL or SIGTERM to one of two processes",
        "the other ends within heartbeat + 5 s; the restart bitwise equal",
    )
    assert [code for code, _ in pair(work / "pair", heartbeat)] == [0, 0]
    expected = outcome(work / "pair")
    rng = random.Random(seed)
    slowest = 0.0
    turn = missed = 0
    while tally.tried < tries:
        out = work / f"pair-{turn}-{missed}"
        kind, victim = (signal.SIGKILL, signal.SIGTERM)[turn % 2], (turn // 2) % 2
        processes = together(out, heartbeat, script=MARKED)
        wait_for_first_step(processes[victim])
        time.sleep(rng.uniform(0.0, 0.5))
        if processes[victim].poll() is not None:  # it was faster: no fault, and not counted
            assert [finish(process)[0] for process in processes] == [0, 0]
            missed += 1
            assert missed < 3 * tries
            continue
        processes[victim].send_signal(kind)
        began = time.monotonic()
        ends = [finish(process, heartbeat + 30) for process in processes]
        seconds = time.monotonic() - began
        codes = [code for code, _ in ends]
        slowest = max(slowest, seconds)
        restarted = pair(out, heartbeat)
        again = [code for code, _ in restarted]
        fine = (
            seconds <= heartbeat + 5
            and _as_documented(kind, codes, victim)
            and again == [0, 0]
            and outcome(out) == expected
        )
        said = _last([*ends, *restarted])
        tally.count(
            fine,
            f"{kind.name} to process {victim}: exits {codes} in {seconds:.1f} s, "
            f"again {again}; {said}",
        )
        turn += 1
    tally.note = f"(slowest {slowest:.1f} s, heartbeat {heartbeat} s)"
    return tally


def _as_documented(kind: signal.Signals, codes: list[int], victim: int) -> bool:
    """Exit codes as in docs/launch.md; a SIGTERM after a run's last check is too late for both."""
    if kind == signal.SIGTERM:
        return codes in ([EXIT_STOPPED, EXIT_STOPPED], [0, 0])
    other = codes[1 - victim]
    return codes[victim] == -signal.SIGKILL and (other < 0 or other in (EXIT_STOPPED, EXIT_HUNG))


def _last(ends: list[tuple[int, str]]) -> list[str]:
    """The first line that each said of an error, or its last."""
    lines = [said.strip().splitlines() or [""] for _, said in ends]
    return [next((line for line in each if "rror" in line), each[-1])[:200] for each in lines]


def together(
    out: Path | str, heartbeat: int, *flags: str, count: int = 2, **how: str
) -> list[subprocess.Popen[str]]:
    """The run as processes of one device each; `how`: script and environment for `start`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    hosts = [
        "--hosts.coordinator",
        address,
        "--hosts.processes",
        str(count),
        "--hosts.heartbeat",
        str(heartbeat),
    ]
    return [
        start(out, *flags, *hosts, "--hosts.process-id", str(process), **how)
        for process in range(count)
    ]


def pair(
    out: Path | str, heartbeat: int, *flags: str, count: int = 2, **how: str
) -> list[tuple[int, str]]:
    """Exit code and messages of two processes that end by themselves."""
    return [
        finish(process, 600) for process in together(out, heartbeat, *flags, count=count, **how)
    ]
