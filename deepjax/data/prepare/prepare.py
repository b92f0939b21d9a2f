"""Prepare a data set as ArrayRecord, which training reads without TensorFlow.

It is downloaded, or read from a folder of archives.
"""

from collections.abc import Sequence
from pathlib import Path

from deepjax.data.catalog import Dataset, dataset_info
from deepjax.data.embedded import EMBEDDED
from deepjax.data.fingerprint import UndecodableImage, check_fingerprint, write_fingerprint
from deepjax.data.prepare.build import build_dataset
from deepjax.data.prepare.rewrite import rewrite_dataset
from deepjax.data.prepare.shrink import shrink_record
from deepjax.data.prepare.small import READERS, build_small
from deepjax.data.prepare.tfrecord import convert_tfrecord
from deepjax.data.prepare.verify import find_undecodable
from deepjax.data.prepared import data_directory
from deepjax.data.shards import read_info, read_records
from deepjax.data.splits import check_opens, load_split
from deepjax.errors import InputError, describe_error, require
from deepjax.paths import user_path

_SHOWN = 20  # damaged images in what is printed; all of them are in fingerprint.json


def prepare_dataset(
    name: str,
    data_dir: str | None = None,
    manual_dir: str | None = None,
    from_tfrecord: str | None = None,
) -> Path:
    """Prepare a data set unless that is done, and read it back completely; returns its folder.

    Raises InputError for an unknown name, without TensorFlow, for missing or wrong archives, when
    tfds cannot get or read them, when an earlier preparation was interrupted, and for a data set
    that differs from its fingerprint.
    """
    dataset = dataset_info(name)
    if dataset.builder in EMBEDDED:
        raise InputError(f"dataset {name!r} is part of the package: nothing to prepare")
    if manual_dir is not None:
        manual_dir = str(user_path(manual_dir, "manual_dir"))
        require(
            Path(manual_dir).is_dir(),
            "manual_dir",
            manual_dir,
            f"an existing folder that holds the archives of {name}",
        )
    folder = _folder(dataset, data_dir)
    if folder.exists():
        form = read_info(folder).get("fileFormat", "tfrecord")
        require(
            form == "array_record",
            f"the format of {folder}",
            form,
            "array_record (see --from-tfrecord, with another --data-dir)",
        )
        check_fingerprint(folder)
    elif from_tfrecord is None:
        build = build_small if dataset.builder in READERS else build_dataset
        build(dataset, data_directory(data_dir), manual_dir)
    else:
        convert_tfrecord(dataset, from_tfrecord, folder)
    return _finish(dataset, folder, data_dir)


def write_resized_copy(name: str, side: int, data_dir: str | None = None) -> Path:
    """Write a copy whose images have a shorter side of at most `side`; returns its data_dir.

    Raises InputError where the data set is not prepared or does not hold encoded photographs.
    """
    dataset, directory = dataset_info(name), data_directory(data_dir)
    check_side(dataset, side)
    check_opens(dataset, data_dir)  # says what is to be done where it is not there
    source = _folder(dataset, data_dir)
    copies = directory / f"resized_{side}"
    target = copies / source.relative_to(directory)
    if target.exists():
        check_fingerprint(target)
    else:
        rewrite_dataset(
            source, target, read_records, lambda record: shrink_record(record, side), {"side": side}
        )
    _finish(dataset, target, str(copies))
    return copies


def check_side(dataset: Dataset, side: int) -> None:
    """Raise InputError unless images of the data set can be made that small."""
    require(16 <= side <= 1024, "resized", side, "16 to 1024 pixels")
    require(
        dataset.encoded,
        "resized",
        side,
        f"a data set of photographs; the images of {dataset.name} all are {dataset.shape}",
    )


def _folder(dataset: Dataset, data_dir: str | None) -> Path:
    import tensorflow_datasets as tfds

    directory = data_directory(data_dir)
    try:
        return Path(tfds.builder(dataset.builder, data_dir=directory).data_path)
    # tfds reads metadata that is there, and raises its own kinds where it is corrupt
    except Exception as error:
        reason = describe_error(error)
        raise InputError(f"dataset {dataset.name!r} cannot be opened: {reason}") from error


def _finish(dataset: Dataset, folder: Path, data_dir: str | None) -> Path:
    """Read the data set back completely, print its contents and write its fingerprint."""
    damaged = find_undecodable(folder) if dataset.encoded else []
    for split, (name, _) in dataset.splits.items():
        count = len(load_split(dataset, split, data_dir))
        print(
            f"{dataset.name} {split}: {count:,} images, every one read "
            f"back{_format_undecodable(damaged, name)}"
        )
    # of which parts are used
    for split in sorted(
        {damage.split for damage in damaged} - {name for name, _ in dataset.splits.values()}
    ):
        print(f"all of its {split!r}{_format_undecodable(damaged, split)}")
    if damaged:
        print(f"to train all the same: --on-decode-error skip --max-decode-errors {len(damaged)}")
    write_fingerprint(folder, damaged)
    return folder


def _format_undecodable(damaged: Sequence[UndecodableImage], split: str) -> str:
    """The number of undecodable images of a split, and the first of them, one per line."""
    found = [
        f"  record {each.record} {each.file}: {each.why}" for each in damaged if each.split == split
    ]
    if not found:
        return ""
    more = (
        [f"  and {len(found) - _SHOWN} more, all in fingerprint.json"]
        if len(found) > _SHOWN
        else []
    )
    return "\n".join([f"; {len(found)} cannot be decoded:", *found[:_SHOWN], *more])
