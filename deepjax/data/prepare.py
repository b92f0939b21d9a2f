"""`python -m deepjax.data.prepare NAME`: download (or take from a folder) and write a data set as ArrayRecord."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from deepjax.data.catalog import dataset_info
from deepjax.data.source import data_directory, load_split
from deepjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Write a data set as ArrayRecord so that training reads it without TensorFlow."""

    name: Annotated[str, tyro.conf.Positional]
    """Name of the data set: fashion_mnist, cifar10, cifar100, svhn_cropped."""
    data_dir: str | None = None
    """Where to write it; default $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    manual_dir: str | None = None
    """Folder that holds the original archives, so that nothing is downloaded."""


def prepare(name: str, data_dir: str | None = None, manual_dir: str | None = None) -> Path:
    """Prepare the data set of that name and read it back whole; returns its folder.

    Raises InputError for an unknown name, without TensorFlow, for a missing manual folder, or when tfds cannot get the archives.
    """
    dataset = dataset_info(name)
    if name == "digits":
        raise InputError("dataset 'digits' is part of the package: nothing to prepare")
    if manual_dir is not None and not Path(manual_dir).is_dir():
        raise InputError(f"manual_dir is {manual_dir!r}; allowed: an existing folder that holds the archives of {name}")
    try:
        import tensorflow  # noqa: F401  # tfds writes records with it
    except ImportError as error:
        raise InputError("preparing a data set needs TensorFlow; install it with: pip install 'deepjax[prepare]'") from error
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=data_directory(data_dir), file_format="array_record")
    # Every archive must have the sha256 that tfds knows, before it is opened.
    config = tfds.download.DownloadConfig(manual_dir=manual_dir, force_checksums_validation=True)
    try:
        builder.download_and_prepare(download_config=config)
    except Exception as error:  # network, checksum and disk errors come in a dozen types from tfds and its downloader
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise InputError(f"dataset {name!r} could not be prepared ({reason}); pass --manual-dir with its archives") from error
    for split in ("train", "test"):
        print(f"{name} {split}: {len(load_split(dataset, split, data_dir)):,} images, every one read back")
    return Path(builder.data_path)


def main() -> None:
    """The command line."""
    from deepjax.command import parse, run

    run(lambda: _report(parse(Prepare)))


def _report(options: Prepare) -> None:
    folder = prepare(options.name, options.data_dir, options.manual_dir)
    print(f"prepared in {folder}")


if __name__ == "__main__":
    main()
