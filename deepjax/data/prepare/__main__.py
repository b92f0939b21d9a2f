"""`python -m deepjax.data.prepare NAME`: download (or take from a folder) and write a data set as ArrayRecord."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from deepjax.data.catalog import Dataset, dataset_info
from deepjax.data.fingerprint import Damage, check_fingerprint, write_fingerprint
from deepjax.data.prepare.build import generate
from deepjax.data.prepare.rewrite import rewrite
from deepjax.data.prepare.shrink import shrink_record
from deepjax.data.prepare.tfrecord import convert
from deepjax.data.prepare.verify import find_damage
from deepjax.data.shards import read_info, read_records
from deepjax.data.splits import check_opens, data_directory, load_split
from deepjax.errors import InputError, require
from deepjax.paths import user_path

_SHOWN = 20  # damaged images in what is printed; all of them are in fingerprint.json


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Write a data set as ArrayRecord so that training reads it without TensorFlow."""

    name: Annotated[str, tyro.conf.Positional]
    """Name of the data set: fashion_mnist, cifar10, imagenette/160px-v2, imagenet2012, ..."""
    data_dir: str | None = None
    """Where to write it; default $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    manual_dir: str | None = None
    """Folder that holds the original archives, so that nothing is downloaded."""
    from_tfrecord: str | None = None
    """Folder of the same data set as tfds prepared it as TFRecord: converted instead of prepared."""
    resized: int | None = None
    """Also write a copy with the shorter side of each image at most this, to the folder resized_N of data_dir."""


def prepare(
    name: str,
    data_dir: str | None = None,
    manual_dir: str | None = None,
    from_tfrecord: str | None = None,
) -> Path:
    """Prepare the data set of that name, unless that is done, and read it back whole; returns its folder.

    Raises InputError for an unknown name, without TensorFlow, for missing or wrong archives, when tfds cannot get or read them,
    when an earlier preparation was interrupted, and for a data set that is not what its fingerprint says.
    """
    dataset = dataset_info(name)
    if dataset.builder == "digits":
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
        generate(dataset, data_directory(data_dir), manual_dir)
    else:
        convert(dataset, from_tfrecord, folder)
    return _finish(dataset, folder, data_dir)


def resize(name: str, side: int, data_dir: str | None = None) -> Path:
    """Write a copy of a prepared data set whose images have a shorter side of at most `side`; returns the data_dir to read it from.

    Raises InputError where the data set is not prepared or not stored as encoded photographs.
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
        rewrite(
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

    try:
        return Path(tfds.builder(dataset.builder, data_dir=data_directory(data_dir)).data_path)
    except (
        Exception
    ) as error:  # tfds reads metadata that is there, and raises its own kinds where it is damaged
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise InputError(f"dataset {dataset.name!r} cannot be opened: {reason}") from error


def _finish(dataset: Dataset, folder: Path, data_dir: str | None) -> Path:
    """Read the data set back whole, tell what is in it, and write its fingerprint."""
    damaged = find_damage(folder) if dataset.encoded else []
    for split, (name, _) in dataset.splits.items():
        count = len(load_split(dataset, split, data_dir))
        print(
            f"{dataset.name} {split}: {count:,} images, every one read back{_described(damaged, name)}"
        )
    for split in sorted(
        {damage.split for damage in damaged} - {name for name, _ in dataset.splits.values()}
    ):  # of which parts are used
        print(f"all of its {split!r}{_described(damaged, split)}")
    if damaged:
        print(f"to train all the same: --on-decode-error skip --max-decode-errors {len(damaged)}")
    write_fingerprint(folder, damaged)
    return folder


def _described(damaged: Sequence[Damage], split: str) -> str:
    """How many are damaged, and the first of them, a line each."""
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


def main() -> None:
    """The command line."""
    from deepjax.command_line import parse, run

    run(lambda: _report(parse(Prepare)))


def _report(options: Prepare) -> None:
    if options.resized is not None:
        check_side(dataset_info(options.name), options.resized)
    folder = prepare(options.name, options.data_dir, options.manual_dir, options.from_tfrecord)
    print(f"prepared in {folder}")
    if options.resized is not None:
        print(
            f"the copy is read with --data-dir {resize(options.name, options.resized, options.data_dir)}"
        )


if __name__ == "__main__":
    main()
