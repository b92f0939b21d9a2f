"""The archives that tests prepare have ILSVRC2012's form, by tarfile and by tfds's own reader."""

import tarfile

import pytest
import tensorflow_datasets as tfds

from deepjax.data import dataset_info
from tests.data.archives import (
    CLASSES,
    VALIDATION_LABELS,
    lines,
    small_files,
    small_imagenet,
    write_archives,
)


def test_a_tar_of_tars_and_a_tar_of_images(tmp_path):
    files = small_files(20, 5)
    write_archives(tmp_path, files)
    with tarfile.open(tmp_path / "ILSVRC2012_img_train.tar") as outer:
        assert len(outer.getnames()) == CLASSES and all(
            name.endswith(".tar") for name in outer.getnames()
        )
        with tarfile.open(fileobj=outer.extractfile(outer.getnames()[0])) as inner:
            assert all(
                name.startswith(outer.getnames()[0][:9]) and name in files.train
                for name in inner.getnames()
            )
    with tarfile.open(tmp_path / "ILSVRC2012_img_val.tar") as archive:
        assert archive.getnames() == [f"ILSVRC2012_val_{i:08d}.JPEG" for i in range(1, 6)]


@pytest.mark.parametrize("damaged", [False, True])
def test_prepared_records_are_the_files(tmp_path, damaged):
    """Read by tfds: every image byte for byte, every label by its synset, validation labels in
    order.
    """
    files = small_files(20, 5, damaged)
    dataset = small_imagenet(tmp_path, train=20, validation=5, damaged=damaged)
    assert dataset_info(dataset.name) is dataset and (dataset.train_size, dataset.test_size) == (
        20,
        5,
    )
    builder = tfds.builder("imagenet2012", data_dir=tmp_path, file_format="array_record")
    synset = builder.info.features["label"].int2str
    for split in ("train", "validation"):
        records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        read = {
            record["file_name"].decode(): (record["image"], synset(record["label"]))
            for record in records
        }
        assert read == {
            name: (data, files.synsets[name]) for name, data in files.split(split).items()
        }
    assert [files.synsets[name] for name in files.validation] == lines(VALIDATION_LABELS)[:5]
    assert len(builder.info.splits["train"].shard_lengths) == 3
