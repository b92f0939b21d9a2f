"""Processes that are killed or told to stop, alone and in pairs."""

import random
import signal
import socket
import subprocess
import time
from pathlib import Path

from tests.faults.runs import complete, finish, outcome, reference, start
from tests.faults.tally import Tally

PHASES = ("compile", "train", "save", "eval", "last step", "final evaluation", "twice", "train")


def sigkill(tries: int, work: Path, seed: int = 0) -> Tally:
    """SIGKILL at random moments of training and saving; the run is started again until it ends."""
    tally = Tally("SIGKILL at random moments of training and saving", "final state and logs bitwise equal, no partial folders left")
    expected = reference(work)
    rng = random.Random(seed)
    began = time.monotonic()
    assert finish(start(work / "timed"))[0] == 0
    whole = time.monotonic() - began
    run = 0
    while tally.tried < tries:
        out = work / f"killed-{run}"
        hits = 0
        while tally.tried + hits < tries:
            process = start(out)
            time.sleep(rng.uniform(0.25, 1.0) * whole)
            alive = process.poll() is None
            process.kill()
            process.communicate()
            if not alive:
                break
            hits += 1
        complete(out)
        same = outcome(out) == expected
        for hit in range(hits):
            tally.count(same, f"run {run}, kill {hit + 1}: the end differs")
        run += 1
    tally.note = f"({run} runs)"
    return tally


def sigterm(tries: int, work: Path, seed: int = 0) -> Tally:
    """SIGTERM in each phase, by a victim that sends it to itself there; then the run is carried on."""
    tally = Tally("SIGTERM in train, eval, compile, save, last step", "exit 143 within 5 s of the step's end, nothing lost")
    expected = reference(work)
    slowest = 0.0
    for turn in range(tries):
        phase, out = PHASES[turn % len(PHASES)], work / f"stopped-{turn}"
        when = 1 + (turn // len(PHASES)) % 3 + seed
        code, said = finish(start(out, script="tests/faults/victim.py", FAULT_PHASE=phase, FAULT_WHEN=str(when)))
        marks = [float(line.split()[1]) for line in said.splitlines() if line.startswith("ENDED")]
        seconds = marks[-1] if marks else float("inf")
        slowest = max(slowest, seconds)
        complete(out)
        fine = code == 143 and seconds <= 5 and outcome(out) == expected
        last = said.strip().splitlines()[-1:] if said.strip() else []
        tally.count(fine, f"{phase} {when}: exit {code}, {seconds:.1f} s, equal: {outcome(out) == expected}, {last}")
    tally.note = f"(slowest {slowest:.1f} s)"
    return tally


def one_of_two(tries: int, work: Path, seed: int = 0, heartbeat: int = 10) -> Tally:
    """A signal to one of two processes; the other must end, and a restart of both must end in the same bits."""
    tally = Tally("SIGKILL or SIGTERM to one of two processes", "the other ends within heartbeat + 5 s; the restart bitwise equal")
    assert [code for code, _ in pair(work / "pair", heartbeat)] == [0, 0]
    expected = outcome(work / "pair")
    rng = random.Random(seed)
    slowest = 0.0
    for turn in range(tries):
        out = work / f"pair-{turn}"
        kind, victim = (signal.SIGKILL, signal.SIGTERM)[turn % 2], (turn // 2) % 2
        processes = _start_pair(out, heartbeat)
        _wait_for_first_step(out)
        time.sleep(rng.uniform(0.0, 2.0))
        alive = processes[victim].poll() is None
        processes[victim].send_signal(kind)
        began = time.monotonic()
        ends = [finish(process, heartbeat + 30) for process in processes]
        codes = [code for code, _ in ends]
        seconds = time.monotonic() - began
        restarted = pair(out, heartbeat)
        again = [code for code, _ in restarted]
        slowest = max(slowest, seconds)
        stopped = kind == signal.SIGKILL or codes == [143, 143] or not alive or codes == [0, 0]
        fine = seconds <= heartbeat + 5 and stopped and again == [0, 0] and outcome(out) == expected
        said = _last([*ends, *restarted])
        tally.count(fine, f"{kind.name} to process {victim}: exits {codes} in {seconds:.1f} s, again {again}; {said}")
    tally.note = f"(slowest {slowest:.1f} s, heartbeat {heartbeat} s)"
    return tally


def _last(ends: list[tuple[int, str]]) -> list[str]:
    """The first line that each said of an error, or its last."""
    lines = [said.strip().splitlines() or [""] for _, said in ends]
    return [next((line for line in each if "rror" in line), each[-1])[:200] for each in lines]


def _start_pair(out: Path, heartbeat: int, *flags: str) -> list[subprocess.Popen[str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    hosts = ["--hosts.coordinator", address, "--hosts.processes", "2", "--hosts.heartbeat", str(heartbeat)]
    return [start(out, *flags, *hosts, "--hosts.process-id", str(process)) for process in range(2)]


def pair(out: Path, heartbeat: int, *flags: str) -> list[tuple[int, str]]:
    """Exit code and messages of two processes that end by themselves."""
    return [finish(process, 600) for process in _start_pair(out, heartbeat, *flags)]


def _wait_for_first_step(out: Path, most: float = 60.0) -> None:
    began = time.monotonic()
    while time.monotonic() - began < most and not (out / "metrics.jsonl").exists():
        time.sleep(0.1)
