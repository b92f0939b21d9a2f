"""Descriptions of data sets: refused in one line, or opened and sampled as they were written."""

import functools
import math
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import tensorflow_datasets as tfds
from hypothesis import given
from hypothesis import strategies as st

from deepjax.data import Dataset, load_split, sample
from deepjax.data.loader import epoch_order
from deepjax.data.split_spec import check_disjoint, parse_split, record_ranges
from deepjax.errors import InputError
from tests.data.made import png, write_examples
from tests.properties.examples import examples

ODD = [
    None,
    True,
    False,
    "",
    "train",
    "two\nlines",
    b"x",
    -1,
    0,
    1.5,
    10**400,
    math.nan,
    math.inf,
    [],
    {},
    [[]],
    (1, 2, 3, 4),
    object(),
]
NUMBERS = st.one_of(
    st.integers(-5, 300),
    st.floats(allow_nan=True),
    st.sampled_from([np.float32(3), np.int64(7), np.bool_(True)]),
)
BOUNDS = st.one_of(
    st.just(""), st.integers(-40, 40).map(str), st.integers(-101, 101).map("{}%".format)
)
PARTS = st.one_of(
    st.sampled_from(
        [
            "train",
            "test",
            "valid",
            "all",
            "train[]",
            "train[:]",
            "train[1.5:]",
            "train[:2shard]",
            "",
            "+",
            "[3:]",
        ]
    ),
    st.builds("{}[{}:{}]".format, st.sampled_from(["train", "test"]), BOUNDS, BOUNDS),
)
EXPRESSIONS = st.lists(PARTS, min_size=1, max_size=3).map(" + ".join)


def refused(act):
    """The result of `act`; None for an InputError of one line; any other exception fails."""
    try:
        return act()
    except InputError as error:
        assert str(error) and "\n" not in str(error)
        return None


def either(valid):
    """Mostly a valid value, else an odd one."""
    return st.one_of(valid, valid, valid, st.sampled_from(ODD), NUMBERS)


FIELDS = {
    "name": either(st.sampled_from(["a", "of/mine"])),
    "shape": either(
        st.lists(st.one_of(st.integers(0, 9), st.sampled_from([1, 3])), min_size=3, max_size=3)
    ),
    "num_classes": either(st.integers(1, 12)),
    "train_size": either(st.integers(0, 50)),
    "test_size": either(st.integers(0, 50)),
    "mean": either(st.lists(NUMBERS, min_size=1, max_size=3)),
    "std": either(st.lists(NUMBERS, min_size=1, max_size=3)),
    "flip": either(st.booleans()),
    "crop": either(st.integers(0, 9)),
    "source": either(st.just("here")),
    "encoded": either(st.booleans()),
    "builder": either(st.sampled_from(["", "digits"])),
    "test_split": either(EXPRESSIONS),
    "label": either(st.just("label")),
    "train_split": either(EXPRESSIONS),
}


@examples(few=100, many=10_000)
@given(st.fixed_dictionaries(FIELDS))
def test_a_description_is_whole_or_refused(fields):
    """What passes has the annotated types, one mean and std per channel, and describes itself."""
    dataset = refused(lambda: Dataset(**fields))
    if dataset is None:
        return
    height, width, channels = dataset.shape
    assert all(type(side) is int and side >= 1 for side in dataset.shape) and channels in (
        (3,) if dataset.encoded else (1, 3)
    )
    assert not dataset.encoded or height == width
    for values, least in ((dataset.mean, 0), (dataset.std, 1e-6)):
        assert len(values) == channels and all(
            type(value) is float and least <= value <= 255 for value in values
        )
    for field, given_values in (("mean", dataset.mean), ("std", dataset.std)):
        stated = np.broadcast_to(np.asarray(fields[field], np.float64), channels)
        np.testing.assert_array_equal(given_values, stated)
    assert (
        type(dataset.num_classes) is int
        and dataset.num_classes >= 2
        and dataset.train_size + dataset.test_size > 0
    )
    assert (
        0 <= dataset.crop <= min(height, width) and type(dataset.flip) is bool and dataset.builder
    )
    assert all(size > 0 and parse_split(name) for name, size in dataset.splits.values())
    assert Dataset(**vars(dataset)) == dataset and hash(dataset) == hash(Dataset(**vars(dataset)))


def ids_of(expression: str, sizes: dict[str, int]) -> list[tuple[str, int]] | None:
    """The records of an expression by Python's slices; None if invalid, out of bounds or empty."""
    try:
        parse_split(expression)
    except ValueError:
        return None
    found = []
    for part in expression.split("+"):
        name, _, bounds = part.strip().removesuffix("]").partition("[")
        if name not in sizes:
            return None
        size = sizes[name]
        start, _, stop = bounds.partition(":")
        places = [
            round(int(b[:-1]) * size / 100) if b.endswith("%") else int(b) if b else None
            for b in (start, stop)
        ]
        if any(place is not None and abs(place) > size for place in places):
            return None
        if not (ids := range(size)[slice(*places)]):
            return None
        found += [(name, i) for i in ids]
    return found


@examples(few=100, many=10_000)
@given(EXPRESSIONS, EXPRESSIONS, st.integers(0, 30), st.integers(0, 30))
def test_parts_of_splits_are_pythons_slices_and_overlaps_are_found(
    train, test, train_count, test_count
):
    """The resolution of splits by tfds, and the search for overlaps, against sets of records."""
    for expression in (train, test):
        try:
            parse_split(expression)
        except ValueError:
            return
    sizes = {"train": train_count, "test": test_count}
    infos = {name: SimpleNamespace(num_examples=size) for name, size in sizes.items()}
    resolved = {}
    for split, expression in (("train", train), ("test", test)):
        found = refused(
            lambda split=split, expression=expression: record_ranges("a", split, expression, infos)
        )
        expected = ids_of(expression, sizes)
        assert (found is None) == (expected is None)
        if found is None or expected is None:
            return
        assert [(name, i) for name, start, stop in found for i in range(start, stop)] == expected
        resolved[split] = (found, expected)
    every = resolved["train"][1] + resolved["test"][1]
    disjoint = refused(
        lambda: (
            check_disjoint("a", {split: found for split, (found, _) in resolved.items()}) or True
        )
    )
    assert bool(disjoint) == (len(set(every)) == len(every))


SHAPES = [(6, 4, 1), (5, 5, 3), (3, 8, 3)]
SIZES = {"train": 24, "test": 10}
ENTRIES = ["label", "coarse", "number", "weight", "several", "image", "missing"]


@functools.cache
def written() -> tuple[str, dict]:
    """A folder with a prepared data set per shape; its images and labels by builder and split."""
    folder, rng, there = (
        tempfile.TemporaryDirectory(prefix="deepjax-property-"),
        np.random.default_rng(0),
        {},
    )
    for shape in SHAPES:
        name = "made_" + "x".join(map(str, shape))
        features = {
            "image": tfds.features.Image(shape=shape),
            "label": tfds.features.ClassLabel(num_classes=5),
            "coarse": tfds.features.ClassLabel(num_classes=2),
            "number": tfds.features.Scalar(np.uint8),
            "weight": tfds.features.Scalar(np.float64),
            "several": tfds.features.Sequence(tfds.features.ClassLabel(num_classes=5)),
        }
        for split, count in SIZES.items():
            images = rng.integers(0, 256, (count, *shape)).astype(np.uint8)
            labels = rng.integers(0, 5, count)
            there[name, split] = (
                images,
                {"label": labels, "coarse": labels % 2, "number": 4 - labels},
            )
        splits = {
            split: [
                {"image": png(there[name, split][0][i]), "weight": 0.5, "several": [0]}
                | {entry: int(values[i]) for entry, values in there[name, split][1].items()}
                for i in range(count)
            ]
            for split, count in SIZES.items()
        }
        write_examples(Path(folder.name), name, features, splits)
    there["folder"] = folder  # deleted when the process ends
    return folder.name, there


@examples(few=30, many=1_000)
@given(st.data())
def test_what_is_opened_and_sampled_is_what_was_written(data):
    """Labels of the declared entry, images of the declared parts; nothing that fits is refused."""
    folder, there = written()
    shape = data.draw(st.sampled_from(SHAPES))
    builder = "made_" + "x".join(map(str, shape))
    train, test = (data.draw(st.one_of(st.just(of), EXPRESSIONS)) for of in ("train", "test"))
    expected = {split: ids_of(e, SIZES) for split, e in (("train", train), ("test", test))}
    sizes = {
        split: data.draw(st.sampled_from([len(ids or []) or 1] * 9 + [3, 0]))
        for split, ids in expected.items()
    }
    entry = data.draw(st.sampled_from([*ENTRIES[:3] * 3, *ENTRIES]))
    classes = data.draw(st.sampled_from([5, 5, 2, 2, 7]))
    declared = data.draw(st.sampled_from([shape] * 9 + SHAPES + [(4, 6, 1)]))
    statistics = data.draw(
        st.sampled_from([(127.0, 73.0)] * 9 + [(0.0, 1.0), (0.5, 0.3), (255.0, 20.0)])
    )
    split = data.draw(st.sampled_from(["train", "test"]))
    dataset = refused(
        lambda: Dataset(
            "a",
            declared,
            classes,
            sizes["train"],
            sizes["test"],
            *statistics,
            False,
            0,
            "tests",
            builder=builder,
            label=entry,
            train_split=train,
            test_split=test,
        )
    )
    if dataset is None:
        return
    loaded = refused(lambda: load_split(dataset, split, folder))
    fits = (
        sizes[split] == len(expected[split] or [])
        and all(expected[each] for each in sizes if sizes[each])
        and len(every := [i for each in sizes if sizes[each] for i in expected[each] or []])
        == len(set(every))
        and entry in ENTRIES[:3]
        and classes in {"label": (5,), "coarse": (2,), "number": (5, 7, 2)}[entry]
        and declared == shape
        and statistics != (0.5, 0.3)
        and sizes[split] > 0
    )
    if loaded is None:
        assert not fits or (entry == "number" and classes == 2)  # whose labels may be out of range
        return
    assert fits
    images = np.stack([there[builder, name][0][i] for name, i in expected[split]])
    labels = np.asarray([there[builder, name][1][entry][i] for name, i in expected[split]])
    np.testing.assert_array_equal(loaded.images, images)
    np.testing.assert_array_equal(loaded.labels, labels)
    seen = sample(dataset, 1, seed=5, split=split, data_dir=folder)
    first = epoch_order(len(labels), 5, 0)[:1]
    np.testing.assert_allclose(
        seen["image"],
        (images[first] - np.float32(statistics[0])) / np.float32(statistics[1]),
        rtol=1e-6,
    )
    np.testing.assert_array_equal(seen["label"], labels[first])
