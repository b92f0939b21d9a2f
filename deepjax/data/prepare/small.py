"""Small data sets of the catalog, prepared from their archives without TensorFlow.

The records are those that tfds's builders write, in the same order: the same pixels, labels and
ids; a PNG may be packed otherwise.
"""

import http.client
import io
import shutil
import tarfile
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deepjax.data.catalog import Dataset
from deepjax.data.idx import read_idx_split
from deepjax.data.prepare.archives import check_archive
from deepjax.data.prepare.rewrite import ORIGIN, claim_folder
from deepjax.data.split_spec import parse_split
from deepjax.data.threads import progress
from deepjax.errors import InputError, describe_error

Example = dict[str, Any]
Names = Mapping[str, list[str]]
"""Class names by feature, where the archive has them."""
Read = Callable[[Path, str], tuple[Names, Iterator[Example]]]
"""(folder of archives, split) -> class names, examples in the archive's order."""
SPLITS = ("train", "test")
FURTHER_SPLITS = {"svhn_cropped": ("extra",)}  # which are written where a data set asks for them
DOWNLOADS = "downloads"  # in the folder of prepared data sets
BLOCK = 2**20  # bytes that are read at a time
CIFAR_PIXELS = 3 * 32 * 32


def read_fashion_mnist(archives: Path, split: str) -> tuple[Names, Iterator[Example]]:
    """Fashion-MNIST from its four idx archives."""
    images, labels = read_idx_split(archives, split)
    pairs = zip(images, labels, strict=True)
    return {}, ({"image": _png(image), "label": int(label)} for image, label in pairs)


def read_cifar10(archives: Path, split: str) -> tuple[Names, Iterator[Example]]:
    """CIFAR-10 from cifar-10-binary.tar.gz."""
    files = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
    path = archives / "cifar-10-binary.tar.gz"
    names = _member(path, "cifar-10-batches-bin/batches.meta.txt").decode().split()
    data = [_member(path, f"cifar-10-batches-bin/{file}") for file in files[split]]
    return {"label": names}, _cifar(path, b"".join(data), ("label",), split)


def read_cifar100(archives: Path, split: str) -> tuple[Names, Iterator[Example]]:
    """CIFAR-100 from cifar-100-binary.tar.gz, with the coarse label of each image."""
    path = archives / "cifar-100-binary.tar.gz"
    names = {
        f"{prefix}label": _member(path, f"cifar-100-binary/{kind}_label_names.txt").decode().split()
        for prefix, kind in (("coarse_", "coarse"), ("", "fine"))
    }
    data = _member(path, f"cifar-100-binary/{split}.bin")
    return names, _cifar(path, data, ("coarse_label", "label"), split)


def read_svhn(archives: Path, split: str) -> tuple[Names, Iterator[Example]]:
    """The cropped digits of SVHN from train_32x32.mat, ...; a 0 is stored as 10."""
    import scipy.io  # here, since it takes half a second

    path = archives / f"{split}_32x32.mat"
    try:
        stored = scipy.io.loadmat(path)
        images, labels = np.moveaxis(stored["X"], -1, 0), stored["y"].reshape(-1)
        fits = images.shape[1:] == (32, 32, 3) and labels.shape == images.shape[:1]
        if not fits or labels.min() < 1 or labels.max() > 10:
            raise ValueError(f"images {images.shape}, labels {labels.shape}")
    except Exception as error:  # SciPy's kinds are many
        raise InputError(f"{path} cannot be read: {describe_error(error)}") from error
    return {}, (
        {"image": _png(image), "label": int(label) % 10, "id": f"{split}_{i:06d}"}
        for i, (image, label) in enumerate(zip(images, labels, strict=True))
    )


READERS: Mapping[str, tuple[Read, tuple[str, ...]]] = {
    "fashion_mnist": (
        read_fashion_mnist,
        tuple(
            f"{split}-{kind}-ubyte.gz"
            for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
        ),
    ),
    "cifar10": (read_cifar10, ("cifar-10-binary.tar.gz",)),
    "cifar100": (read_cifar100, ("cifar-100-binary.tar.gz",)),
    "svhn_cropped": (read_svhn, ("{split}_32x32.mat",)),
}  # fmt: skip
"""By builder: the reader and the names of the archives, of which `{split}` is each split."""


def build_small(dataset: Dataset, data_dir: Path, manual_dir: str | None) -> None:
    """Write a data set of `READERS`, from archives in `manual_dir` or downloaded ones.

    Size and sha256 of every archive are those that tfds knows. Raises InputError for a missing or
    other archive, where it cannot be downloaded or read, where another process writes the data set,
    and where it cannot be written.
    """
    try:
        _build(dataset, data_dir, manual_dir)
    except (OSError, RuntimeError) as error:  # the latter by ArrayRecord
        raise InputError(
            f"dataset {dataset.name!r} cannot be prepared in {data_dir} ({describe_error(error)}); "
            "free space, or choose another --data-dir"
        ) from error


def _build(dataset: Dataset, data_dir: Path, manual_dir: str | None) -> None:
    import tensorflow_datasets as tfds

    read, names = READERS[dataset.builder]
    asked = {name for text, _ in dataset.splits.values() for name, _ in parse_split(text)}
    further = [name for name in FURTHER_SPLITS.get(dataset.builder, ()) if name in asked]
    splits = (*SPLITS, *further)
    builder = tfds.builder(dataset.builder, data_dir=data_dir, file_format="array_record")
    known = {info.filename: (url, info) for url, info in (builder.url_infos or {}).items()}
    archives = Path(manual_dir) if manual_dir else data_dir / DOWNLOADS / dataset.builder
    for name in dict.fromkeys(name.format(split=split) for name in names for split in splits):
        url, info = known[name]
        if not manual_dir and not (archives / name).is_file():
            download(url, archives / name, int(info.size))
        if not (archives / name).is_file():
            raise InputError(f"manual_dir {manual_dir} has no {name}; get it from {url}")
        check_archive(archives / name, info)
    work = Path(builder.data_path).with_name(f"unfinished.{Path(builder.data_path).name}")
    work.mkdir(parents=True, exist_ok=True)
    with claim_folder(work, {"builder": dataset.builder}):
        write_records_of(builder, read, archives, splits, work)


def download(url: str, path: Path, size: int) -> None:
    """Download a file completely, or leave nothing. Raises InputError where that fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    try:
        with (
            urllib.request.urlopen(url, timeout=60) as source,  # noqa: S310  # tfds's own URLs
            partial.open("wb") as target,
            progress(f"downloading {path.name}", size, "bytes") as advance,
        ):
            for block in iter(lambda: source.read(BLOCK), b""):
                target.write(block)
                advance(len(block))
        if partial.stat().st_size != size:
            raise OSError(f"it ended after {partial.stat().st_size:,} of {size:,} bytes")
    except (OSError, http.client.HTTPException) as error:
        partial.unlink(missing_ok=True)
        raise InputError(
            f"{url} cannot be downloaded ({describe_error(error)}); get it yourself, and give its "
            "folder as --manual-dir"
        ) from error
    partial.rename(path)


def write_records_of(
    builder: Any, read: Read, archives: Path, splits: Sequence[str], work: Path
) -> None:
    """Write splits with tfds's serializer and writer, in the order of its hash of the keys.

    work: the folder until it is complete, claimed by this process; what an earlier one left in it
    is removed.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.example_serializer import ExampleSerializer
    from tensorflow_datasets.core.utils.shard_utils import ShardConfig
    from tensorflow_datasets.core.writer import ExampleWriter, Writer

    for left in work.iterdir():
        if left.is_dir():
            shutil.rmtree(left)
        elif left.name != ORIGIN:
            left.unlink()
    features, written = builder.info.features, []
    for split in splits:
        names, examples = read(archives, split)
        for feature, of_feature in names.items():
            features[feature].names = of_feature
        template = builder._get_filename_template(split_name=split)
        template = template.replace(data_dir=work)
        writer = Writer(
            ExampleSerializer(features.get_serialized_info()), template, split, False,
            ExampleWriter(builder.info.file_format), ShardConfig(num_shards=1),
        )  # fmt: skip
        with progress(f"writing {builder.name} {split}", 0) as advance:
            for key, example in enumerate(examples):
                writer.write(key, features.encode_example(example))
                advance(1)
        lengths, size = writer.finalize()
        written.append(
            tfds.core.SplitInfo(
                name=split, shard_lengths=lengths, num_bytes=size, filename_template=template
            )
        )
    builder.info.set_splits(tfds.core.SplitDict(written))
    builder.info.write_to_directory(work)
    work.rename(builder.data_path)
    (Path(builder.data_path) / ORIGIN).unlink()  # last: an unfinished folder names its origin


def _cifar(path: Path, data: bytes, labels: tuple[str, ...], split: str) -> Iterator[Example]:
    """Each image: a byte for each label, then red, green and blue, 32x32 bytes each."""
    size = len(labels) + CIFAR_PIXELS
    if not data or len(data) % size:
        raise InputError(f"{path} has {len(data):,} bytes of images, not a multiple of {size:,}")
    rows = np.frombuffer(data, np.uint8).reshape(-1, size)
    for i, row in enumerate(rows):
        image = row[len(labels) :].reshape(3, 32, 32).transpose(1, 2, 0)
        numbers = {label: int(row[at]) for at, label in enumerate(labels)}
        yield {"image": _png(image), "id": f"{split}_{i:05d}", **numbers}


def _member(path: Path, name: str) -> bytes:
    """A file in a packed tar file, read into memory."""
    try:
        with tarfile.open(path) as archive:
            file = archive.extractfile(name)
            if file is None:
                raise KeyError(name)
            return file.read()
    except (tarfile.TarError, OSError, EOFError, KeyError) as error:
        raise InputError(f"{path} has no readable {name} ({describe_error(error)})") from error


def _png(pixels: np.ndarray) -> io.BytesIO:
    """Pixels (height, width) or (height, width, 3) as a file, which tfds stores as it is."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG")
    file.seek(0)
    return file
