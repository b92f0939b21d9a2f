"""The data sets that are part of the package, and their records."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepjax.data.shards import read_records

# Name -> folder of the prepared data set.
EMBEDDED: Mapping[str, Path] = {
    name: Path(__file__).parent / name / name / "1.0.0"
    for name in ("digits", "fashion_mnist_small")
}


def read_parts(parts: Any) -> list[bytes]:
    """The records of `file_instructions` of tfds's information on a split or a part of one.

    tfds reads them one by one, which is slow, and logged as an error, where records are compressed
    in groups, as those of `fashion_mnist_small` are.
    """
    return [
        record
        for part in parts
        for record in itertools.islice(
            read_records(Path(part.filename)),
            part.skip,
            None if part.take < 0 else part.skip + part.take,
        )
    ]
