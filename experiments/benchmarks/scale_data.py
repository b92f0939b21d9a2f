"""One process of a run on a generated data set: its memory, files and time to the first batch.

python experiments/benchmarks/scale_data.py --records 10000 --shards 10
"""

import dataclasses
import hashlib
import io
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from harness import write_result
from PIL import Image

from deepjax import command_line
from deepjax.data import Dataset, load_split, train_batches
from deepjax.data.fingerprint import write_fingerprint
from deepjax.data.prepare.tf_example import parse_example
from deepjax.data.shards import write_records
from deepjax.progress import counter

NAME, SIDE = "scale", 8
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclasses.dataclass(frozen=True)
class Options:
    """The data set, and the part of it that is read."""

    records: int = 10_000
    """Records of the data set, of about 100 bytes each."""
    shards: int = 10
    """Files that hold them, of equal length."""
    batch_size: int = 400
    """Images of a step, over all processes."""
    processes: int = 1
    """Processes of the run; this one reads its share of each batch."""
    process: int = 0
    """Which of them this process is."""
    steps: int = 0
    """Steps that are read; 0: an epoch."""
    data_dir: Path | None = None
    """Where the data set is, or is generated; a temporary folder by default."""
    output_dir: Path | None = None
    """Where the result is written as JSON; nowhere by default."""


def main() -> None:
    """Generate the data set unless it is there, read it, print what was measured as JSON."""
    options = command_line.parse(Options)
    with tempfile.TemporaryDirectory(prefix="deepjax-scale-") as folder:
        data_dir = options.data_dir or Path(folder)
        if not (data_dir / NAME).exists():
            generate(data_dir, options.records, options.shards)
        result = measured(data_dir, options)
    print(json.dumps(result))
    write_result(result, options.output_dir)


def generate(data_dir: Path, records: int, shards: int) -> None:
    """An ArrayRecord data set as tfds writes it: images of one pixel, labels 0, 1, 2, ..."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.dataset_info import DatasetIdentity
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    folder: Any = data_dir / NAME / "1.0.0"
    folder.mkdir(parents=True)
    identity = DatasetIdentity(NAME, tfds.core.Version("1.0.0"), str(folder), "scale")
    entries: Any = {
        "image": tfds.features.Image(),
        "label": tfds.features.ClassLabel(num_classes=records),
    }
    features: Any = tfds.features.FeaturesDict(entries)
    info = tfds.core.DatasetInfo(builder=identity, features=features, description="generated")
    info.set_file_format("array_record")
    file = io.BytesIO()
    Image.new("RGB", (1, 1), (10, 20, 30)).save(file, "PNG")
    file.seek(0)
    serializer = ExampleSerializer(features.get_serialized_info())
    encoded = features.encode_example({"image": file, "label": 0})
    example = parse_example(serializer.serialize_example(encoded))
    label = example.features.feature["label"].int64_list.value
    lengths = [len(part) for part in np.array_split(np.arange(records), shards)]
    ends = np.cumsum(lengths).tolist()

    def serialized(start: int, stop: int) -> Iterator[bytes]:
        for i in range(start, stop):
            label[0] = i
            yield example.SerializeToString(deterministic=True)

    with counter(f"writing {records:,} records", shards, "shard", 10.0) as advance:
        for i, (length, end) in enumerate(zip(lengths, ends, strict=True)):
            path = folder / f"{NAME}-train.array_record-{i:05d}-of-{shards:05d}"
            write_records(path, serialized(end - length, end))
            advance(1)
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=NAME, split="train", filetype_suffix="array_record"
    )
    split = tfds.core.SplitInfo(
        name="train", shard_lengths=lengths, num_bytes=1, filename_template=template
    )
    info.set_splits(tfds.core.SplitDict([split]))
    info.write_to_directory(folder)
    write_fingerprint(folder)


def measured(data_dir: Path, options: Options) -> dict[str, Any]:
    """Seconds, resident bytes, bytes read and open files while this process reads its share."""
    import tensorflow_datasets  # noqa: F401  # its import is no part of what is measured

    dataset = Dataset(
        name=NAME,
        shape=(SIDE, SIDE, 3),
        num_classes=options.records,
        train_size=options.records,
        test_size=0,
        mean=(128.0,),
        std=(64.0,),
        flip=False,
        crop=0,
        source="generated",
        encoded=True,
    )
    before, start = resident_bytes(), time.perf_counter()
    split = load_split(dataset, "train", str(data_dir))
    opened = time.perf_counter() - start
    steps = options.steps or options.records // options.batch_size
    batches = train_batches(split, options.batch_size, 0, steps, options.process, options.processes)
    labels, first = hashlib.sha256(), 0.0
    read_before = bytes_read()
    count = 0
    with counter("reading", steps, "step", 10.0) as advance:
        for batch in batches:
            first = first or time.perf_counter() - start
            labels.update(batch["label"].astype("<i4").tobytes())
            count += len(batch["label"])
            advance(1)
    return {
        "options": dataclasses.asdict(options) | {"data_dir": None, "output_dir": None},
        "open_s": opened,
        "first_batch_s": first,
        "resident_before": before,
        "resident_after": resident_bytes(),
        "bytes_read": bytes_read() - read_before,
        "records_read": count,
        "open_files": len(os.listdir("/proc/self/fd")),
        "labels": labels.hexdigest(),
        "in_order": labels.hexdigest() == expected_labels(options, steps),
    }


def expected_labels(options: Options, steps: int) -> str:
    """Hash of this process's labels in the order that the documentation promises, for an epoch."""
    raw = np.random.Philox(np.random.SeedSequence((0, 0))).random_raw(options.records)
    order = np.argsort(raw, kind="stable")[: steps * options.batch_size]
    own = order.reshape(steps, options.processes, -1)[:, options.process]
    return hashlib.sha256(own.astype("<i4").tobytes()).hexdigest()


def resident_bytes() -> int:
    """Memory of this process that is in RAM now (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


def bytes_read() -> int:
    """Bytes that this process has read from files, cached ones included (Linux)."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("rchar")))


if __name__ == "__main__":
    command_line.run_command(main)
