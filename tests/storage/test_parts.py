"""Files in parts: which parts a reader joins."""

import pytest

from deepjax.storage.parts import current_parts, is_part, part_name

A, B = (part_name("metrics.jsonl", 1, 0, offset) for offset in (0, 10))
NEW = part_name("metrics.jsonl", 1, 1, 0)
NEXT_OWNER = part_name("metrics.jsonl", 2, 0, 0)
TAIL = part_name("metrics.jsonl", 2, 0, 7)


@pytest.mark.parametrize(
    ("sizes", "joined"),
    [
        ({A: 10}, [A]),
        ({A: 10, B: 5}, [A, B]),
        ({A: 9, B: 5}, [A]),  # a part between them is missing
        ({A: 10, B: 5, NEW: 3}, [NEW]),  # the file was rewritten
        ({A: 10, NEW: 3, NEXT_OWNER: 7, TAIL: 1}, [NEXT_OWNER, TAIL]),
        ({A: 10, NEXT_OWNER: 6, TAIL: 1}, [NEXT_OWNER]),
    ],
)
def test_the_newest_generation_is_joined_as_far_as_it_is_complete(sizes, joined):
    assert current_parts(sizes) == {"metrics.jsonl": joined}


@pytest.mark.parametrize("sizes", [{}, {"metrics.jsonl": 3}, {B: 5}, {"metrics.jsonl.parts/x": 1}])
def test_without_a_first_part_there_is_no_file_in_parts(sizes):
    assert current_parts(sizes) == {}


def test_names():
    assert is_part(A)
    assert not is_part("metrics.jsonl")
    assert sorted([TAIL, NEXT_OWNER, NEW, B, A]) == [A, B, NEW, NEXT_OWNER, TAIL]
