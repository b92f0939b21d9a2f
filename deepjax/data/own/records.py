"""The records of a split of the user's own data."""

from collections.abc import Mapping
from types import SimpleNamespace

import numpy as np

from deepjax.data.own.examples import Examples
from deepjax.data.split_spec import Range, SplitName, check_disjoint, record_ranges
from deepjax.errors import require


def own_records(
    name: str, splits: Mapping[str, Examples], expressions: Mapping[SplitName, str]
) -> dict[SplitName, Examples]:
    """The examples of each split of a data set, in the order of training.

    expressions: "train", "test" or a part of one, in the notation of tfds. Raises InputError for
    parts that the data do not have, and where training and test images overlap.
    """
    sizes = {split: SimpleNamespace(num_examples=len(each)) for split, each in splits.items()}
    ranges: dict[SplitName, list[Range]] = {
        which: record_ranges(name, which, text, sizes) for which, text in expressions.items()
    }
    check_disjoint(name, ranges)
    found: dict[SplitName, Examples] = {}
    for which, parts in ranges.items():
        allowed = "'train', 'test' or a part of one"
        require(len(parts) == 1, f"{which}_split", expressions[which], allowed)
        [(split, first, stop)] = parts
        examples = splits[split]
        complete = (first, stop) == (0, len(examples))
        found[which] = examples if complete else examples.part(np.arange(first, stop))
    return found
