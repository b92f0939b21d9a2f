"""Batches of photographs: bitwise equal from any position, with any threads and processes.

Decode errors are handled by policy and always reported.
"""

import dataclasses
import sys
from collections import Counter

import numpy as np
import pytest

from deepjax.data import (
    Crops,
    Dataset,
    EncodedSplit,
    dataset_info,
    eval_batches,
    load_split,
    sample,
    train_batches,
)
from deepjax.data.fingerprint import UndecodableImage, write_fingerprint
from deepjax.data.image.crops import Box, centre_box
from deepjax.data.image.decode import decode_crop, opencv
from deepjax.data.loader import batch_index
from deepjax.errors import InputError
from tests.data.archives import small_imagenet
from tests.data.photographs import crops, jpeg, variants

COUNT, SIZE = 23, 24
SET = Dataset(
    "photographs",
    (SIZE, SIZE, 3),
    30,
    COUNT,
    COUNT,
    (0.0,) * 3,
    (1.0,) * 3,
    True,
    0,
    "tests",
    encoded=True,
)
FILES = [jpeg(pixels) for pixels in crops(COUNT, seed=5, shortest=30, longest=90)]


class Records:
    """Records in memory that know how often each was read; the label is the record's number."""

    def __init__(self, files=FILES, labels=None) -> None:
        self.files, self.read = files, Counter()
        self.labels = range(len(files)) if labels is None else labels

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict:
        self.read[index] += 1
        return {"image": self.files[index], "label": np.int64(self.labels[index])}


def split(records=None, **options) -> EncodedSplit:
    return EncodedSplit(SET, "train", records or Records(), **({"threads": 1} | options))


def damaged_at(*places: int) -> Records:
    broken = [variants()["truncated"], variants()["no_image"], variants()["empty"]]
    return Records([broken[i % 3] if i in places else file for i, file in enumerate(FILES)])


def equal(batches, others) -> None:
    batches, others = list(batches), list(others)
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for name, value in batch.items():
            np.testing.assert_array_equal(value, other[name])


def test_a_batch_has_the_images_of_the_order_each_cut_anew():
    batches = list(train_batches(split(), 8, seed=3, steps=4))
    assert [batch["label"].tolist() for batch in batches] == [
        batch_index(COUNT, 8, 3, step).tolist() for step in range(4)
    ]
    assert all(
        batch["image"].shape == (8, SIZE, SIZE, 3) and batch["image"].dtype == np.uint8
        for batch in batches
    )
    seen = {}  # the same image in two epochs
    for batch in batches:
        for label, image in zip(batch["label"].tolist(), batch["image"], strict=True):
            assert label not in seen or np.any(seen[label] != image)
            seen[label] = image


@pytest.mark.parametrize("threads", [2, 5])
def test_threads_change_no_bit(threads):
    equal(train_batches(split(threads=threads), 8, 1, 5), train_batches(split(), 8, 1, 5))
    equal(eval_batches(split(threads=threads), 8), eval_batches(split(), 8))


@pytest.mark.parametrize("cut_at", range(0, 6))
def test_any_position_resumes_to_the_same_bits_with_batches_on_their_way(cut_at):
    """The position is that of the batch taken, however far the thread that puts batches has read
    ahead.
    """

    def batches():
        return train_batches(split(), 8, seed=1, steps=5, put=lambda batch: batch)

    first = batches()
    before = [next(first) for _ in range(min(cut_at, 5))]
    second = batches()
    second.set_state(first.get_state())
    equal(before + list(second), batches())
    first.close()


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("damaged", [(), (3, 4)])
def test_a_process_reads_only_its_slice(processes, damaged):
    """And finds the replacements of damaged images by itself."""
    options = {"on_decode_error": "skip", "budget": 2}
    whole = list(train_batches(split(damaged_at(*damaged), **options), 8, 2, 2))
    for process in range(processes):
        records = damaged_at(*damaged)
        own = list(train_batches(split(records, **options), 8, 2, 2, process, processes))
        share = slice(process * 8 // processes, (process + 1) * 8 // processes)
        for batch, all_of_it in zip(own, whole, strict=True):
            np.testing.assert_array_equal(batch["image"], all_of_it["image"][share])
            np.testing.assert_array_equal(batch["label"], all_of_it["label"][share])
        assert not damaged or sum(records.read.values()) <= 16 // processes + 2 * len(damaged)
        assert damaged or sum(records.read.values()) == 16 // processes


def test_repeats_are_other_crops_of_one_image_and_an_epoch_has_fewer():
    """DeiT and timm's RASampler: three crops of an image, a third of the images an epoch."""
    batches = list(train_batches(split(), 9, 0, 2, crops=Crops(repeats=3)))
    labels = [label for batch in batches for label in batch["label"].tolist()]
    assert labels == [label for label in batch_index(COUNT, 9, 0, 0).tolist()[:6] for _ in range(3)]
    first = batches[0]["image"]
    assert np.any(first[0] != first[1]) and np.any(first[1] != first[2])


def test_sizes_are_functions_of_the_step():
    sizes = [16, 16, 20, 24]
    batches = train_batches(split(), 8, 0, 4, size_at=lambda step: sizes[step])
    assert [batch["image"].shape[1] for batch in batches] == sizes


@pytest.mark.parametrize("batch_size", [1, 5, 23, 40])
@pytest.mark.parametrize("most", [None, 7])
def test_evaluation_has_every_image_once_cut_from_the_centre(batch_size, most):
    batches = list(eval_batches(split(), batch_size, 0, 1, 0, 0.9, most))
    counted = [
        i
        for batch in batches
        for i, mask in zip(batch["label"].tolist(), batch["mask"], strict=True)
        if mask
    ]
    assert counted == list(range(most or COUNT))
    exact = decode_crop(FILES[0], lambda h, w: centre_box(h, w, SIZE, 0.9), SIZE)
    np.testing.assert_array_equal(batches[0]["image"][0], exact)


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_evaluate_disjoint_slices(processes):
    shares = [list(eval_batches(split(), 8, process, processes)) for process in range(processes)]
    whole = [
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in zip(*shares, strict=True)
    ]
    equal(whole, eval_batches(split(), 8))


def test_a_damaged_image_halts_with_its_name():
    with pytest.raises(
        InputError,
        match=r"dataset 'photographs', split 'train', record 4 is corrupt \(ValueError: neither a",
    ):
        list(train_batches(split(damaged_at(4)), 23, 0, 1))
    with pytest.raises(
        InputError,
        match=r"record 3 is corrupt \(ValueError: JPEG without its end marker.*"
        r"on_decode_error='skip'",
    ):
        list(eval_batches(split(damaged_at(3)), 8))


@pytest.mark.parametrize("threads", [1, 3])
def test_an_undecodable_image_is_reported_and_replaced_by_the_next(threads):
    records = split(damaged_at(4, 5, 22), on_decode_error="skip", budget=2, threads=threads)
    (batch,) = train_batches(records, 23, 0, 1)
    order = batch_index(COUNT, 23, 0, 0).tolist()
    assert batch["label"].tolist() == [{4: 6, 5: 6, 22: 0}.get(i, i) for i in order]
    assert sorted(i for i, _ in batch["damaged"]) == [4, 5, 22]
    # no address of an object, which would be another in each run
    assert "0x" not in str(batch["damaged"])


def test_more_damaged_images_next_to_each_other_than_the_budget_halt():
    records = split(damaged_at(4, 5, 6), on_decode_error="skip", budget=2)
    with pytest.raises(
        InputError, match=r"record 4 is corrupt .*, 3 in a row; allowed: max_decode_errors, 2;"
    ):
        list(train_batches(records, 23, 0, 1))


class Failing(Records):
    """Records that cannot be read."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def __getitem__(self, index: int) -> dict:
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        OSError("stale"),
        MemoryError(),
        ImportError(),
        RuntimeError("pread() failed: Input/output error"),
        RuntimeError("open() failed: Too many open files; opening train.array_record-00520"),
    ],
)
def test_what_is_no_fault_of_an_image_is_no_damage(error):
    kind = OSError if isinstance(error, RuntimeError) else type(error)
    with pytest.raises(kind):
        split(Failing(error), on_decode_error="skip", budget=3).train_images(
            [0], [lambda h, w: Box(0, 0, h, w)], SIZE
        )
    with pytest.raises(kind):
        split(Failing(error), on_decode_error="skip", budget=3).eval_images(
            [0], lambda h, w: Box(0, 0, h, w), SIZE
        )


def test_without_opencv_fast_crops_say_so_before_the_first_batch(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    opencv.cache_clear()
    with pytest.raises(InputError, match="resize_backend='pillow'"):
        train_batches(split(), 8, 0, 1)
    train_batches(split(), 8, 0, 1, crops=Crops(exact=True))


def test_evaluation_leaves_a_damaged_image_out_of_the_mask_and_tells_it():
    batches = list(eval_batches(split(damaged_at(4, 5), on_decode_error="skip"), 8))
    assert [batch["mask"].tolist() for batch in batches] == [
        [1] * 4 + [0, 0] + [1] * 2,
        [1] * 8,
        [1] * 7 + [0],
    ]
    assert [i for batch in batches for i, _ in batch.get("damaged", ())] == [4, 5]


@pytest.mark.parametrize("label", [-1, 30, 2**32 + 3])
def test_a_label_outside_the_classes_halts_whatever_the_policy(label):
    records = split(Records(labels=[label] * COUNT), on_decode_error="skip", budget=5)
    with pytest.raises(InputError, match=rf"has label {label}; allowed: 0 to 29"):
        list(train_batches(records, 8, 0, 1))


def test_several_labels_an_image_are_left_to_the_records():
    """As ImageNet-ReaL has them, some images none."""
    several = dataclasses.replace(SET, label="real_label")
    records = [
        {"image": FILES[0], "real_label": np.asarray(labels, np.int64)} for labels in ([3, 4], [])
    ]
    both = EncodedSplit(several, "test", records, threads=1)
    assert [both.read(i)[1] for i in (0, 1)] == [-1, -1]


def test_a_prepared_set_is_read_as_it_was_written(tmp_path):
    """Through tfds from ArrayRecord.

    The bytes of the archives' images, labels and the catalogue's sizes.
    """
    dataset = small_imagenet(tmp_path, train=40, validation=16)
    train, test = (
        load_split(dataset, "train", str(tmp_path)),
        load_split(dataset, "test", str(tmp_path)),
    )
    assert (len(train), len(test)) == (40, 16)
    read = [test.read(i) for i in range(16)]
    assert len({encoded for encoded, _ in read}) == 16 and all(
        encoded[:2] == b"\xff\xd8" for encoded, _ in read
    )
    (batch,) = eval_batches(test, 16, 0, 1, 32)
    assert batch["image"].shape == (16, 32, 32, 3) and batch["label"].tolist() == [
        label for _, label in read
    ]
    drawn = sample(dataset, 4, split="test", image_size=32, data_dir=str(tmp_path))
    assert drawn["image"].shape == (4, 32, 32, 3)


def test_a_split_knows_its_fingerprint_also_when_that_is_written_anew(tmp_path):
    dataset = small_imagenet(tmp_path, train=40, validation=16)
    folder = tmp_path / "imagenet2012" / "5.1.0"
    digests = [
        write_fingerprint(folder, found) for found in ([], [UndecodableImage("train", 3, "", "")])
    ]
    assert load_split(dataset, "test", str(tmp_path)).fingerprint == digests[1]  # pyright: ignore
    assert (
        write_fingerprint(folder)
        == load_split(dataset, "test", str(tmp_path)).fingerprint
        == digests[0]
    )  # pyright: ignore


def test_a_set_for_tests_alone_says_so():
    with pytest.raises(InputError, match="'imagenet_a' has no images for split 'train'"):
        load_split(dataset_info("imagenet_a"), "train")
