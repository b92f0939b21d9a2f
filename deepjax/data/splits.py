"""Splits of prepared tfds data sets, read without TensorFlow: arrays, or encoded photographs."""

import dataclasses
from typing import Any

import numpy as np

from deepjax.data.catalog import Dataset
from deepjax.data.dataset_checks import check_features, check_statistics
from deepjax.data.embedded import EMBEDDED, read_parts
from deepjax.data.encoded_split import EncodedSplit
from deepjax.data.image.fixed_size import decode_fixed_size
from deepjax.data.own.arrays import Arrays
from deepjax.data.own.examples import Examples
from deepjax.data.own.fingerprint import fingerprint_of
from deepjax.data.own.grouping import shown_names
from deepjax.data.own.index import Index, exists, open_index
from deepjax.data.own.records import own_records
from deepjax.data.prepared import open_builder
from deepjax.data.shards import allow_open_shards
from deepjax.data.split_spec import (
    SplitName,
    check_disjoint,
    parse_split,
    record_ranges,
    shared_records,
)
from deepjax.errors import InputError, describe_error, require
from deepjax.paths import user_path


@dataclasses.dataclass(frozen=True)
class Split:
    """Images (count, height, width, channels) uint8 and labels (count,) int32, in stored order.

    The index is the example's id. Raises InputError for other types or numbers.
    """

    images: np.ndarray
    labels: np.ndarray
    fingerprint: str = ""
    """sha256 of the user's own arrays, else ""."""

    def __post_init__(self):
        given = f"{self.images.dtype} {self.images.shape}, {self.labels.dtype} {self.labels.shape}"
        fits = (
            self.images.dtype == np.uint8
            and self.images.ndim == 4
            and self.labels.dtype == np.int32
        )
        require(
            fits and self.labels.shape == self.images.shape[:1],
            "images, labels",
            given,
            "uint8 (n, h, w, c), int32 (n,)",
        )

    def __len__(self) -> int:
        return len(self.labels)


def load_split(
    dataset: Dataset, split: SplitName, data_dir: str | None = None
) -> Split | EncodedSplit:
    """Open one split of a prepared data set; images of one size are read and decoded at once.

    Raises InputError when the data set is not prepared (naming the command that prepares it); when
    a file differs from its fingerprint; when images, labels or classes differ from the declared
    ones; when training and test images overlap; when the number of records differs from the
    declared one; when a record is corrupt; when an image's header declares another shape (before it
    is decoded); when a label lies outside the classes; and when mean and std cannot be those of the
    images. An encoded split finds corrupt images and such labels when its records are read.
    """
    records, fingerprint = open_records(dataset, split, data_dir)
    if dataset.encoded:
        return EncodedSplit(dataset, split, records, fingerprint=fingerprint)
    if isinstance(records, Arrays):
        check_statistics(dataset, records.images)
        return Split(records.images, records.labels, fingerprint)
    images, labels = _allocated(dataset, len(records)), np.empty(len(records), np.int64)
    for i in range(len(records)):
        images[i], labels[i] = _read(records, i, dataset, split)
    _check_labels(labels, dataset, split)
    check_statistics(dataset, images)
    return Split(images, labels.astype(np.int32))


def check_opens(dataset: Dataset, data_dir: str | None = None) -> None:
    """Raise InputError unless both splits can be opened; checks all but the records themselves."""
    for split in dataset.splits:
        open_records(dataset, split, data_dir)


def _allocated(dataset: Dataset, count: int) -> np.ndarray:
    try:
        return np.empty((count, *dataset.shape), np.uint8)
    except MemoryError as error:
        size = f"{count * np.prod(dataset.shape, dtype=np.int64) / 1e9:.0f} GB"
        raise InputError(
            f"dataset {dataset.name!r} needs {size} of memory as arrays; declare encoded=True to "
            "decode images as they are read"
        ) from error


def open_records(dataset: Dataset, split: SplitName, data_dir: str | None) -> tuple[Any, str]:
    """The records of a split, and the fingerprint of its data set."""
    import tensorflow_datasets as tfds

    require(split in ("train", "test"), "split", split, "'train' or 'test'")
    if split not in dataset.splits:
        raise InputError(
            f"dataset {dataset.name!r} has no images for split {split!r}: its {split}_size is 0"
        )
    if dataset.path:
        index = _own_index(dataset)
        return own_parts(dataset, index)[split], fingerprint_of(index.splits)
    try:
        builder, fingerprint = open_builder(dataset, data_dir)
        check_features(dataset, builder.info.features)
        of_builder = builder.info.splits
        shards = sum(part.num_shards for part in of_builder.values())
        allow_open_shards(shards, f"dataset {dataset.name!r}")
        check_disjoint(
            dataset.name,
            {
                which: record_ranges(dataset.name, which, e, of_builder)
                for which, (e, _) in dataset.splits.items()
            },
        )
        decoders = {"image": tfds.decode.SkipDecoding()}
        name, count = dataset.splits[split]
        # A decorator hides the parameters.
        records: Any = builder.as_data_source(split=name, decoders=decoders)  # pyright: ignore[reportCallIssue]
        if dataset.builder in EMBEDDED:
            records.data_source = read_parts(of_builder[name].file_instructions)
        if len(records) != count:
            raise InputError(
                f"dataset {dataset.name!r}, split {split!r} holds {len(records)} records, expected "
                f"{count} ({split}_size); declare its size, or prepare the data set again"
            )
        return records, fingerprint
    except InputError:
        raise
    # tfds, array_record and protobuf each raise their own kinds for damaged metadata
    except Exception as error:
        raise InputError(
            f"dataset {dataset.name!r}, split {split!r} cannot be opened: {describe_error(error)}"
        ) from error


def images_trained_on(trained: Dataset, tested: Dataset, data_dir: str | None) -> str:
    """Which test images of a data set are training images of another one, in words; "" for none.

    Both are of one builder, or of the same data of the user's own, which lie where `tested` says.
    """
    if tested.path:
        index = _own_index(tested)
        there = dataclasses.replace(trained, path=tested.path)
        train, test = own_parts(there, index)["train"], own_parts(tested, index)["test"]
        known = {train.name(i) for i in range(len(train))}
        count = sum(test.name(i) in known for i in range(len(test)))
        return f"{count:,} of its {len(test):,} test images" if count else ""
    expressions = trained.train_split, tested.test_split
    train, test = ({name for name, _ in parse_split(text)} for text in expressions)
    if not train & test:
        return ""
    of_builder = open_builder(tested, data_dir)[0].info.splits
    shared = shared_records(
        record_ranges(trained.name, "train", trained.train_split, of_builder),
        record_ranges(tested.name, "test", tested.test_split, of_builder),
    )
    return ", ".join(f"records {start} to {stop - 1} of {name!r}" for name, start, stop in shared)


def own_parts(dataset: Dataset, index: Index) -> dict[SplitName, Examples]:
    """The training and test images of the user's own data, as a data set describes them.

    Raises InputError for parts that the data do not have or that overlap, and for another number of
    images than described.
    """
    splits = index.split(dataset.test_fraction, dataset.split_seed)
    expressions: dict[SplitName, str] = {
        which: expression for which, (expression, _) in dataset.splits.items()
    }
    found = own_records(dataset.name, splits, expressions)
    for which, (_, size) in dataset.splits.items():
        if len(found[which]) != size:
            raise InputError(
                f"dataset {dataset.name!r} has {len(found[which]):,} images for split {which!r}, "
                f"expected {size:,} ({which}_size); describe the data as they are now"
            )
    return found


def _own_index(dataset: Dataset) -> Index:
    """The user's own data of a data set, which have to be there with the classes as described."""
    if not exists(dataset.path):
        where = user_path(dataset.path, "dataset")
        raise InputError(
            f"dataset {dataset.name!r} is not at {where}; put it there, or give another of the "
            "same classes (--dataset PATH, in Python dataset=PATH)"
        )
    index = open_index(dataset.path)
    if dataset.label_names and index.label_names != dataset.label_names:
        raise InputError(
            f"dataset {dataset.name!r} has the classes {shown_names(index.label_names)}; expected: "
            f"{shown_names(dataset.label_names)}"
        )
    return index


def _read(records, index: int, dataset: Dataset, split: SplitName) -> tuple[np.ndarray, int]:
    where = f"dataset {dataset.name!r}, split {split!r}, record {index}"
    try:
        record = records[index]
        return decode_fixed_size(record["image"], dataset.shape), int(record[dataset.label])
    except InputError as error:
        raise InputError(f"{where}: {error}; prepare the data set again") from error
    # the record reader raises RuntimeError, the image decoder its own kinds: all mean damage
    except Exception as error:
        raise InputError(
            f"{where} is corrupt ({describe_error(error)}); prepare the data set again"
        ) from error


def _check_labels(labels: np.ndarray, dataset: Dataset, split: SplitName) -> None:
    outside = np.flatnonzero((labels < 0) | (labels >= dataset.num_classes))
    if outside.size:
        first = int(outside[0])
        raise InputError(
            f"dataset {dataset.name!r}, split {split!r}, record {first} has label "
            f"{int(labels[first])}; allowed: 0 to {dataset.num_classes - 1} ({outside.size} such "
            "records)"
        )
