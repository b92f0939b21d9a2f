"""Several processes on one machine agree: a failed save fails in all, and none waits for ever."""

from pathlib import Path

import numpy as np
import pytest

from deepjax.errors import InputError
from deepjax.training.checkpoint.inspect import read_contents, steps_of
from deepjax.training.distributed.collectives import all_processes_ok, on_primary, sync_errors
from tests.faults.kills import pair
from tests.faults.runs import finish, outcome, start


def test_alone_it_is_what_this_process_says():
    assert all_processes_ok(True) and not all_processes_ok(False)
    assert (on_primary(lambda: 7), on_primary(lambda: None)) == (7, 0)
    assert sync_errors(lambda: 7) == 7
    for agree in (on_primary, sync_errors):
        with pytest.raises(InputError, match="no room"):
            agree(_fail)


def _fail() -> None:
    raise InputError("no room")


def both_ways(work: Path, count: int, steps: int) -> None:
    """The run on `count` devices of one process, and in `count` processes of one, over gloo."""
    assert (
        finish(start(work / "devices", "--steps", str(steps), JAX_NUM_CPU_DEVICES=str(count)))[0]
        == 0
    )
    ends = pair(work / "processes", 60, "--steps", str(steps), count=count)
    assert [code for code, _ in ends] == [0] * count, ends


@pytest.mark.slow
def test_two_processes_end_in_the_bits_of_two_devices(tmp_path):
    both_ways(tmp_path, 2, steps=6)
    assert outcome(tmp_path / "processes") == outcome(tmp_path / "devices")


@pytest.mark.slow
def test_four_processes_differ_from_four_devices_by_the_order_of_sums_alone(tmp_path):
    """Gloo adds four contributions in another order: one step agrees to 1e-5, on the same data."""
    both_ways(tmp_path, 4, steps=1)
    one, other = read_contents(tmp_path / "devices"), read_contents(tmp_path / "processes")
    assert (one.step, one.position, one.leaves.keys()) == (
        other.step,
        other.position,
        other.leaves.keys(),
    )
    weights = [path for path in one.leaves if path.startswith(("['params']", "['batch_stats']"))]
    flat = [
        np.concatenate([stored.leaves[path].ravel() for path in weights]) for stored in (one, other)
    ]
    assert weights and np.linalg.norm(flat[0] - flat[1]) <= 1e-5 * np.linalg.norm(flat[0])


@pytest.mark.slow
@pytest.mark.parametrize("part", ["folder", "manifest"])
def test_a_save_that_fails_in_one_process_fails_in_all_and_training_goes_on(part, tmp_path):
    ends = pair(tmp_path, 30, "--steps", "6", script="tests/faults/unlucky.py", FAULT_PART=part)
    assert [code for code, _ in ends] == [0, 0], ends
    assert (
        "checkpoint of step 2 could not be written" in ends[0][1] and "No space left" in ends[0][1]
    )
    assert steps_of(tmp_path / "checkpoints") == [4, 6]
