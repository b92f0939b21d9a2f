"""Conversion of tfds's TFRecord data sets to ArrayRecord, for random access without TensorFlow."""

from collections.abc import Iterator
from pathlib import Path

from deepjax.data.catalog import Dataset
from deepjax.data.prepare.build import require_tensorflow
from deepjax.data.prepare.rewrite import rewrite_dataset
from deepjax.data.shards import INFO, read_info
from deepjax.errors import InputError, describe_error
from deepjax.paths import user_path


def convert_tfrecord(dataset: Dataset, directory: str, target: Path) -> None:
    """Convert the TFRecords in `directory` (the data set's folder, or its data_dir) to `target`.

    Records are copied byte for byte; an interrupted conversion resumes. Raises InputError without
    TensorFlow, where the directory holds another data set, version or format, and where a shard is
    missing or corrupt.
    """
    require_tensorflow()
    rewrite_dataset(
        find_tfrecord(dataset, directory),
        target,
        read_tfrecord,
        lambda record: record,
        {"from": "tfrecord"},
    )


def find_tfrecord(dataset: Dataset, directory: str) -> Path:
    """The folder of the data set's TFRecords: `directory`, or one below it. Raises InputError."""
    import tensorflow_datasets as tfds

    given = user_path(directory, "from_tfrecord")
    try:
        builder = tfds.builder(dataset.builder, data_dir=given)
    # tfds reads metadata that is there, and raises its own kinds where it is corrupt
    except Exception as error:
        reason = describe_error(error)
        raise InputError(f"{given} cannot be opened as {dataset.name!r}: {reason}") from error
    folder = given if (given / INFO).is_file() else Path(builder.data_path)
    info = read_info(folder)
    found = (info["name"], info["version"], info.get("fileFormat", "tfrecord"))
    if found != (builder.name, str(builder.version), "tfrecord"):
        raise InputError(
            f"{folder} holds {found[0]} {found[1]} as {found[2]}; allowed: {builder.name} "
            f"{builder.version} as tfrecord (for another version register a data set of your own "
            "with builder 'NAME:VERSION')"
        )
    return folder


def read_tfrecord(path: Path) -> Iterator[bytes]:
    """The records of a TFRecord file in order, checksums verified. Raises InputError if corrupt."""
    import tensorflow as tf

    try:
        for record in tf.data.TFRecordDataset(str(path), buffer_size=2**23).as_numpy_iterator():
            yield bytes(record)
    except tf.errors.OpError as error:
        # without the names of TensorFlow's nodes around it
        reason = error.message.split("}} ")[-1].split(" [Op:")[0]
        raise InputError(
            f"shard {path.name} in {path.parent} cannot be read ({reason[:200]})"
        ) from error
