"""The records of the user's own data, split by split."""

import functools
from types import SimpleNamespace

import numpy as np

from deepjax.data.own.examples import Examples
from deepjax.data.own.fingerprint import fingerprint_of
from deepjax.data.own.index import open_index
from deepjax.data.split_spec import SplitName, record_ranges


def own_records(
    path: str, test_fraction: float, split_seed: int, split: SplitName, expression: str
) -> tuple[Examples, str]:
    """The examples of a split and the fingerprint of the data.

    expression: "train", "test" or a part of one, in the notation of tfds.
    """
    splits = _splits(path, test_fraction, split_seed)
    sizes = {name: SimpleNamespace(num_examples=len(each)) for name, each in splits.items()}
    [(name, first, stop)] = record_ranges(path, split, expression, sizes)
    examples = splits[name]
    if (first, stop) != (0, len(examples)):
        examples = examples.part(np.arange(first, stop))
    return examples, _fingerprint(path)


@functools.lru_cache(maxsize=8)
def _splits(path: str, test_fraction: float, seed: int) -> dict[str, Examples]:
    return open_index(path).split(test_fraction, seed)


@functools.lru_cache(maxsize=8)
def _fingerprint(path: str) -> str:
    return fingerprint_of(open_index(path).splits)
