"""Archives shaped as ILSVRC2012's and imagenette's are, of photographs.

And data sets prepared from them without TensorFlow.

Names, classes and labels are tfds's own: the n-th validation image has the n-th line of its
`validation_labels.txt`. So the builders of tfds take these archives for the real ones, but for
their checksums; `prepare/test_prepare_archives.py` shows that `write_prepared` writes to the byte
what they write.
"""

import dataclasses
import functools
import io
import itertools
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import tensorflow_datasets as tfds
from tensorflow_datasets.core.example_serializer import ExampleSerializer
from tensorflow_datasets.core.utils.shard_utils import ShardConfig
from tensorflow_datasets.core.writer import ExampleWriter, Writer

from deepjax.data import Dataset, dataset_info, register
from tests.data.photographs import crops, jpeg, variants

LABELS = "datasets/imagenet2012/labels.txt"
VALIDATION_LABELS = "datasets/imagenet2012/validation_labels.txt"
CLASSES = 8
ODD = (
    "grey",
    "cmyk",
    "progressive",
    "full_chroma",
    "rotated",
    "png",
    "tall",
    "wide",
    "truncated",
    "no_image",
)
"""The variants that stand among the training images; the last two cannot be decoded."""
DAMAGED = 2


def lines(name: str) -> list[str]:
    """The lines of a file of tfds's own."""
    return tfds.core.tfds_path(name).read_text().split()


@dataclasses.dataclass(frozen=True)
class Files:
    """The images of a small ImageNet: file name -> bytes, and file name -> synset."""

    train: Mapping[str, bytes]
    validation: Mapping[str, bytes]
    synsets: Mapping[str, str]

    def split(self, name: str) -> Mapping[str, bytes]:
        """By tfds's name: train or validation."""
        return {"train": self.train, "validation": self.validation}[name]


@functools.cache
def small_files(
    train: int = 64,
    validation: int = 24,
    damaged: bool = False,
    shortest: int = 40,
    longest: int = 300,
) -> Files:
    """Training images of 8 classes, odd forms first (undecodable ones only if `damaged`), and
    validation.
    """
    labels = lines(VALIDATION_LABELS)
    classes = list(dict.fromkeys(labels))[:CLASSES]  # those of the first validation images
    odd = [variants()[name] for name in (ODD if damaged else ODD[:-DAMAGED])]
    plain = map(jpeg, crops(train + validation, 0, shortest, longest))
    pictures = itertools.chain(odd, plain)
    trained = {f"{classes[i % CLASSES]}_{i}.JPEG": next(pictures) for i in range(train)}
    tested = {f"ILSVRC2012_val_{i + 1:08d}.JPEG": next(pictures) for i in range(validation)}
    return Files(
        trained,
        tested,
        {name: name[:9] for name in trained} | dict(zip(tested, labels, strict=False)),
    )


def write_archives(folder: Path, files: Files) -> None:
    """ILSVRC2012_img_train.tar, which holds a tar for each class, and ILSVRC2012_img_val.tar."""
    folder.mkdir(parents=True, exist_ok=True)
    inner = {}
    for synset in sorted({files.synsets[name] for name in files.train}):
        inner[f"{synset}.tar"] = _tar(
            {name: data for name, data in files.train.items() if files.synsets[name] == synset}
        )
    (folder / "ILSVRC2012_img_train.tar").write_bytes(_tar(inner))
    (folder / "ILSVRC2012_img_val.tar").write_bytes(_tar(files.validation))


def write_archive(path: Path, members: Mapping[str, bytes]) -> Path:
    """Any other archive: name -> bytes; compressed where its name ends in gz or tgz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_tar(members, "w:gz" if path.suffix in (".gz", ".tgz") else "w:"))
    return path


def _tar(members: Mapping[str, bytes], mode: str = "w:") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:  # pyright: ignore[reportCallIssue, reportArgumentType]
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


def write_prepared(data_dir: Path, files: Files, shards: int = 3) -> Path:
    """What tfds's builder `imagenet2012` makes of the archives, as ArrayRecord.

    Returns its folder.
    """
    builder = tfds.builder("imagenet2012", data_dir=data_dir, file_format="array_record")
    folder = Path(builder.data_path)
    folder.mkdir(parents=True)
    builder.info.set_splits(
        tfds.core.SplitDict(
            [_write_split(builder, name, files, shards) for name in ("train", "validation")]
        )
    )
    builder.info.write_to_directory(folder)
    return folder


def _write_split(builder, name: str, files: Files, shards: int) -> tfds.core.SplitInfo:
    features, info = builder.info.features, builder.info
    template = builder._get_filename_template(split_name=name)
    serializer = ExampleSerializer(features.get_serialized_info())
    writer = Writer(
        serializer,
        template,
        name,
        False,
        ExampleWriter(info.file_format),
        ShardConfig(num_shards=shards),
    )
    for key, example in _examples(files, name):
        writer.write(key, features.encode_example(example))
    lengths, size = writer.finalize()
    return tfds.core.SplitInfo(
        name=name, shard_lengths=lengths, num_bytes=size, filename_template=template
    )


def _examples(files: Files, split: str) -> Iterator[tuple[str, dict]]:
    for name, data in files.split(split).items():
        yield name, {"file_name": name, "image": io.BytesIO(data), "label": files.synsets[name]}


def small_imagenet(data_dir: Path, **options) -> Dataset:
    """A small ImageNet, prepared in `data_dir` and registered; options: those of `small_files`."""
    files = small_files(**options)
    write_prepared(data_dir, files)
    name = "ilsvrc_" + "_".join(str(value) for value in (len(files.train), len(files.validation)))
    known = dataset_info("imagenet2012")
    sizes = {"train_size": len(files.train), "test_size": len(files.validation)}
    return register(
        dataclasses.replace(known, name=name, source="photographs of installed packages", **sizes)
    )
