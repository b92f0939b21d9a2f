"""Sixteen processes on one machine: one is slow, one is lost, and other numbers resume the run."""

import dataclasses
import itertools
import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from deepjax.command_line import EXIT_STOPPED
from deepjax.training.checkpoint.inspect import read_contents, steps_of
from deepjax.training.preemption import EXIT_HUNG
from tests.faults.kills import together
from tests.faults.runs import finish, outcome

pytestmark = pytest.mark.slow  # ten minutes on two idle cores

PROCESSES, STEPS, BATCH = 16, 8, 240
HEARTBEAT = 60  # seconds; sixteen processes on two cores are slow to answer
SLOW, LOST, LOST_AFTER = 5, 11, 6


@dataclasses.dataclass(frozen=True)
class Pod:
    """A run directory, and what its processes read in one start."""

    out: Path
    log: Path
    codes: list[int]

    def ids(self, process: int) -> dict[int, list[int]]:
        """The ids that a process read, by step."""
        rows = map(json.loads, (self.log / f"{process}.jsonl").read_text().splitlines())
        return {row["step"]: row["ids"] for row in rows}

    def batches(self, processes: int) -> dict[int, list[int]]:
        """The ids of each step in all processes, in their order."""
        read = [self.ids(process) for process in range(processes)]
        return {
            step: list(itertools.chain.from_iterable(each[step] for each in read))
            for step in read[0]
        }


def run(out: Path, processes: int = PROCESSES, **environment: str) -> Pod:
    """Start the processes of a run, or of its resumption, and wait for all."""
    log = out.with_name(f"{out.name}-{processes}-{len(list(out.parent.glob('*')))}")
    flags = ("--steps", str(STEPS))
    started = together(
        out, HEARTBEAT, *flags, count=processes, script="tests/faults/member.py",
        MEMBER_LOG=str(log), **environment,
    )  # fmt: skip
    return Pod(out, log, [finish(process, 1800)[0] for process in started])


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Pod:
    """A run of sixteen processes."""
    pod = run(tmp_path_factory.mktemp("pod") / "run")
    assert pod.codes == [0] * PROCESSES
    return pod


@pytest.fixture(scope="module")
def lost(tmp_path_factory) -> Pod:
    """The same run, of which one process is killed."""
    out = tmp_path_factory.mktemp("pod") / "run"
    return run(out, MEMBER_STEP=str(LOST_AFTER), MEMBER_DIES=str(LOST))


def test_every_process_reads_its_own_part(uninterrupted):
    share = BATCH // PROCESSES
    for process in range(PROCESSES):
        assert {len(ids) for ids in uninterrupted.ids(process).values()} == {share}
    batches = uninterrupted.batches(PROCESSES)
    first_epoch = {id_ for step in range(5) for id_ in batches[step]}
    assert len(first_epoch) == 5 * BATCH  # of 1437 images, none twice


def test_the_others_wait_for_a_slow_process(uninterrupted, tmp_path):
    pod = run(tmp_path / "run", MEMBER_STEP="3", MEMBER_SLEEPS=str(SLOW))
    assert pod.codes == [0] * PROCESSES
    assert outcome(pod.out) == outcome(uninterrupted.out)


def test_after_a_lost_process_all_end_and_the_restart_is_bitwise_equal(
    uninterrupted, lost, tmp_path
):
    """Exit codes as docs/launch.md says."""
    others = [code for process, code in enumerate(lost.codes) if process != LOST]
    assert lost.codes[LOST] == -signal.SIGKILL
    assert all(code < 0 or code in (EXIT_STOPPED, EXIT_HUNG) for code in others), others
    out = Path(shutil.copytree(lost.out, tmp_path / "run"))
    saved = steps_of(out / "checkpoints")[-1]
    pod = run(out)
    assert pod.codes == [0] * PROCESSES
    assert min(pod.batches(PROCESSES)) == saved >= LOST_AFTER - 2
    assert outcome(pod.out) == outcome(uninterrupted.out)


@pytest.mark.parametrize("processes", [8, 1])
def test_another_number_of_processes_resumes_with_the_same_images(
    uninterrupted, lost, processes, tmp_path
):
    """Bits may differ, as sums have another order; a step enlarges a difference about tenfold."""
    out = Path(shutil.copytree(lost.out, tmp_path / "run"))
    saved = steps_of(out / "checkpoints")[-1]
    pod = run(out, processes)
    assert pod.codes == [0] * processes
    before, resumed = uninterrupted.batches(PROCESSES), pod.batches(processes)
    assert resumed == {step: before[step] for step in range(saved, STEPS)}
    start = read_contents(lost.out, saved).leaves
    here, there = (read_contents(each.out, saved + 2).leaves for each in (pod, uninterrupted))
    assert distance(here, there) < 1e-3 < 1e-2 < distance(start, there)


def distance(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """||a - b|| / ||b|| over all parameters."""
    a, b = (
        np.concatenate([leaf.ravel() for path, leaf in leaves.items() if "params" in path])
        for leaves in (one, other)
    )
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))
