"""The same command started a second time, at the same moment or while the first one trains."""

import random
import subprocess
import time
from pathlib import Path

from deepjax.command_line import EXIT_INPUT
from deepjax.training.metrics.metrics_log import read_rows
from deepjax.training.run_directory.run_identity import is_done
from deepjax.training.run_directory.run_lock import NAME
from tests.faults.kills import LONG, LONG_FLAGS
from tests.faults.runs import finish, outcome, reference, start
from tests.faults.tally import Tally

SLOW = "tests/faults/slow.py"
PAUSE = "0.25"  # seconds: a run of 60 steps takes several second starts


def double_starts(tries: int, work: Path, seed: int = 0) -> Tally:
    """Pairs that start within half a second, one of which may run; then starts while it trains."""
    tally = Tally(
        "a second process in the same run directory",
        "it exits 2 and names the first one, whose end is undisturbed",
    )
    expected = reference(work, LONG)
    rng = random.Random(seed)
    rounds = 0
    while tally.tried < tries:
        out = work / f"twice-{rounds}"
        one = _started(out)
        time.sleep(rng.uniform(0.0, 0.5))
        other = _started(out)
        while one.poll() is None and other.poll() is None:
            time.sleep(0.05)
        loser, winner = (one, other) if one.poll() is not None else (other, one)
        found = [_refused(loser, winner)]
        while tally.tried + len(found) < tries and winner.poll() is None:
            time.sleep(rng.uniform(0.0, 1.0))
            second = _started(out)
            second.wait()
            # Otherwise it found the run finished, while the winner still plots its curves.
            if not is_done(read_rows(out / "metrics.jsonl")):
                found.append(_refused(second, winner))
        code, said = finish(winner)
        same = code == 0 and outcome(out) == expected and not (out / NAME).exists()
        end = f"the first ended with {code}, equal: {same}; {said[-200:]}"
        for wrong in found:
            tally.count(same and not wrong, f"round {rounds}: {wrong or end}")
        rounds += 1
    tally.note = f"({rounds} pairs that started together)"
    return tally


def _started(out: Path) -> subprocess.Popen[str]:
    return start(out, *LONG_FLAGS, script=SLOW, FAULT_PAUSE=PAUSE)


def _refused(process: subprocess.Popen[str], by: subprocess.Popen[str]) -> str:
    """Empty where the process was refused in one line that names the other; else what it did."""
    code, said = finish(process)
    fine = (
        code == EXIT_INPUT and f"is in use by process {by.pid} " in said and said.count("\n") == 1
    )
    return "" if fine else f"exit {code}, {said[-300:]}"
