"""The records of the user's own data, split by split."""

import functools
from types import SimpleNamespace

import numpy as np

from deepjax.data.own.examples import Examples
from deepjax.data.own.fingerprint import fingerprint_of
from deepjax.data.own.index import open_index, own_splits
from deepjax.data.split_spec import SplitName, record_ranges
from deepjax.errors import require


def own_records(
    path: str, test_fraction: float, split_seed: int, split: SplitName, expression: str
) -> tuple[Examples, str]:
    """The examples of a split and the fingerprint of the data.

    expression: "train", "test" or a part of one, in the notation of tfds.
    """
    splits = own_splits(path, test_fraction, split_seed)
    sizes = {name: SimpleNamespace(num_examples=len(each)) for name, each in splits.items()}
    ranges = record_ranges(path, split, expression, sizes)
    require(len(ranges) == 1, f"{split}_split", expression, "'train', 'test' or a part of one")
    [(name, first, stop)] = ranges
    examples = splits[name]
    if (first, stop) != (0, len(examples)):
        examples = examples.part(np.arange(first, stop))
    return examples, _fingerprint(path)


@functools.lru_cache(maxsize=8)
def _fingerprint(path: str) -> str:
    return fingerprint_of(open_index(path).splits)
