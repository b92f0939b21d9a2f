"""Preparation of a data set from its archives, by its builder in tfds, as ArrayRecord."""

import errno
import importlib.util
import os
from pathlib import Path
from typing import Any

from deepjax.data.catalog import Dataset
from deepjax.data.dataset_checks import check_features
from deepjax.data.prepare.archives import check_archives
from deepjax.data.split_spec import parse_split
from deepjax.errors import InputError, describe_error


def build_dataset(dataset: Dataset, data_dir: Path, manual_dir: str | None) -> None:
    """Let tfds write the data set to `data_dir`, from archives in `manual_dir` or downloaded ones.

    Raises InputError without TensorFlow, for missing or wrong archives, when tfds cannot get or
    read them, and where an earlier preparation was interrupted.
    """
    require_tensorflow()
    import tensorflow_datasets as tfds

    builder = tfds.builder(dataset.builder, data_dir=data_dir, file_format="array_record")
    folder = Path(builder.data_path)
    folder.parent.mkdir(parents=True, exist_ok=True)
    check_features(dataset, builder.info.features)
    _refuse_leftovers(folder)
    check_archives(dataset, builder, manual_dir, folder.parent)
    _tell_sizes(dataset, builder)
    # Every archive must have the sha256 that tfds knows, before it is opened.
    config = tfds.download.DownloadConfig(manual_dir=manual_dir, force_checksums_validation=True)
    try:
        builder.download_and_prepare(download_config=config)
    # network, checksum and disk errors come in a dozen types from tfds and its downloader
    except Exception as error:
        reason = describe_error(error)
        raise InputError(
            f"dataset {dataset.name!r} could not be prepared ({reason}); "
            f"{repair_hint(error, manual_dir)}"
        ) from error


def require_tensorflow() -> None:
    """Raise InputError unless TensorFlow, which tfds needs, is installed; hide GPUs from it."""
    if importlib.util.find_spec("tensorflow") is None:
        raise InputError(
            "preparing a data set needs TensorFlow; install it with: pip install 'deepjax[prepare]'"
        )
    # what it did not find on this machine is of no use here
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")  # it would take their whole memory


def repair_hint(error: Exception, manual_dir: str | None) -> str:
    """What to do about an error of tfds, for the end of a message."""
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return "free space, or give another --data-dir"
    return (
        f"fetch the archives in {manual_dir} again"
        if manual_dir
        else "pass --manual-dir with its archives"
    )


def _refuse_leftovers(folder: Path) -> None:
    """Raise InputError for an interrupted preparation, which tfds neither removes nor resumes."""
    for left in sorted(folder.parent.glob(f"incomplete.*_{folder.name}")):
        size = sum(path.stat().st_size for path in left.rglob("*") if path.is_file())
        raise InputError(
            f"a preparation was interrupted, or is running: {left} ({size / 1e9:.1f} GB); tfds "
            f"cannot resume it: unless it is running, begin anew after: rm -r {left}"
        )


def _tell_sizes(dataset: Dataset, builder: Any) -> None:
    """Tell tfds the numbers of images, so that it can show the time left."""
    import tensorflow_datasets as tfds

    complete = [
        (name, size)
        for name, size in dataset.splits.values()
        if parse_split(name) == [(name, True)]
    ]
    expected = [
        tfds.core.SplitInfo(name=name, shard_lengths=[size], num_bytes=0) for name, size in complete
    ]
    builder.info.set_splits(tfds.core.SplitDict(expected))
