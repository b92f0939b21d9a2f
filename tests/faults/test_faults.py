"""A shorter pass of `make faults`: few tries of each kind, the quick ones in one process."""

import json

import pytest

from tests.faults.__main__ import FAULTS, inside
from tests.faults.controls import CONTROLS

QUICK = {  # tries, 0: all; the other kinds take longer even so
    "sigkill": 2,
    "sigterm": 2,
    "bit-flips": 10,
    "cut-files": 3,
    "bad-batches": 10,
    "resumed-order": 0,
    "changed": 12,
    "fuzz": 250,
    "names": 3,
    "double-starts": 2,
}
LONGER = {
    "one-of-two": 2,
    "full-disk": 2,
    "moved": 0,
    "strategies": 0,
    "processes": 1,
    "controls": 0,
    "launchers": 3,
    "signals": 5,
    "settings": 2,
    "bucket-bit-flips": 20,
    "bucket-failures": 0,
    "bucket-pairs": 2,
}


OF_EVERY_CHANGE = {"bucket-kills": 20}


@pytest.fixture(scope="module")
def tallies() -> dict[str, dict]:
    """What became of the faults of each quick kind."""
    return {
        tally["name"]: tally
        for tally in map(
            json.loads, inside([f"{name}:{tries}" for name, tries in QUICK.items()], 1)
        )
    }


@pytest.mark.slow  # a minute and a half together
@pytest.mark.parametrize("name", QUICK)
def test_nothing_is_lost(name, tallies):
    assert tallies[name]["tried"] >= max(1, QUICK[name]) and tallies[name]["losses"] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", LONGER)
def test_nothing_is_lost_of_the_longer_ones(name):
    tally = json.loads(inside([f"{name}:{LONGER[name]}"], FAULTS[name][3])[0])
    assert tally["tried"] and tally["losses"] == [], tally["row"]


@pytest.mark.system
@pytest.mark.parametrize("name", OF_EVERY_CHANGE)
def test_nothing_is_lost_of_those_of_every_change(name):
    tally = json.loads(inside([f"{name}:{OF_EVERY_CHANGE[name]}"], FAULTS[name][3])[0])
    assert (tally["tried"], tally["losses"]) == (OF_EVERY_CHANGE[name], []), tally["row"]


def test_every_kind_of_fault_is_tried_here():
    assert {*QUICK, *LONGER, *OF_EVERY_CHANGE} == set(FAULTS)


@pytest.mark.parametrize("name", CONTROLS)
def test_the_guard_that_a_control_removes_is_where_the_control_looks_for_it(name):
    with CONTROLS[name].without():
        pass
