"""The order of examples is a pure function of (seed, epoch), with any processes and position."""

import numpy as np
import pytest

from deepjax.data import Split, eval_batches, train_batches
from deepjax.data.loader import batch_index, epoch_order
from deepjax.errors import InputError

SIZE = 53
SPLIT = Split(
    np.arange(SIZE, dtype=np.uint8).reshape(SIZE, 1, 1, 1), np.arange(SIZE, dtype=np.int32)
)


def ids(batches) -> list[list[int]]:
    return [batch["label"].tolist() for batch in batches]


def test_every_epoch_is_another_permutation_of_all_examples():
    orders = [epoch_order(SIZE, seed, epoch).tolist() for seed in (0, 1) for epoch in (0, 1, 2)]
    assert all(sorted(order) == list(range(SIZE)) for order in orders)
    assert len({tuple(order) for order in orders}) == 6


def test_batches_follow_the_order_and_drop_only_the_remainder():
    seen = ids(train_batches(SPLIT, 10, seed=4, steps=12))
    assert len(seen) == 12
    for epoch in (0, 1):
        flat = [i for batch in seen[5 * epoch : 5 * epoch + 5] for i in batch]
        assert flat == epoch_order(SIZE, 4, epoch)[:50].tolist()
    assert seen[7] == batch_index(SIZE, 10, 4, 7).tolist()


@pytest.mark.parametrize("cut", range(0, 16))
def test_any_position_resumes_exactly(cut):
    whole = ids(train_batches(SPLIT, 10, seed=1, steps=16))
    first = train_batches(SPLIT, 10, seed=1, steps=16)
    before = [next(first)["label"].tolist() for _ in range(cut)]
    second = train_batches(SPLIT, 10, seed=1, steps=16)
    second.set_state(first.get_state())
    assert before + ids(second) == whole


@pytest.mark.parametrize("processes", [1, 2, 5])
def test_processes_partition_each_global_batch(processes):
    whole = ids(train_batches(SPLIT, 10, seed=2, steps=6))
    shares = [
        ids(train_batches(SPLIT, 10, 2, 6, process, processes)) for process in range(processes)
    ]
    assert [[i for share in shares for i in share[step]] for step in range(6)] == whole


@pytest.mark.parametrize("size", [1, 7, 10, 53, 64])
def test_evaluation_counts_every_example_once(size):
    batches = list(eval_batches(SPLIT, size))
    assert all(batch["image"].shape == (size, 1, 1, 1) for batch in batches)
    counted = [
        i
        for batch in batches
        for i, mask in zip(batch["label"], batch["mask"], strict=True)
        if mask
    ]
    assert counted == list(range(SIZE))


@pytest.mark.parametrize("batch_size", [0, -1, 54])
def test_batch_sizes_out_of_range_are_refused(batch_size):
    with pytest.raises(InputError, match="batch_size"):
        train_batches(SPLIT, batch_size, 0, 1)
