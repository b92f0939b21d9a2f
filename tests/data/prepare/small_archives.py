"""Archives of the small data sets with few images, in their original formats."""

import gzip
import io
import tarfile
from pathlib import Path

import numpy as np

CLASSES = {"fashion_mnist": 10, "cifar10": 10, "cifar100": 100, "svhn_cropped": 10}
COUNTS = {"train": 25, "test": 8}


def images_and_labels(name: str) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """By split: images, labels, and coarse labels, which CIFAR-100 alone has."""
    rng = np.random.default_rng(0)
    shape = (28, 28) if name == "fashion_mnist" else (32, 32, 3)
    found = {}
    for split, count in COUNTS.items():
        labels = rng.integers(CLASSES[name], size=(2, count)).astype(np.uint8)
        found[split] = (rng.integers(256, size=(count, *shape), dtype=np.uint8), *labels)
    for split in found:
        found[split] = (*found[split][:2], found[split][2] % 20)
    return found


def write_small_archives(folder: Path, name: str) -> Path:
    """The archives of a data set."""
    folder.mkdir(parents=True, exist_ok=True)
    made = images_and_labels(name)
    if name == "fashion_mnist":
        for split, first in (("train", "train"), ("test", "t10k")):
            images, labels, _ = made[split]
            for array, kind in ((images, "images-idx3"), (labels, "labels-idx1")):
                sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
                packed = gzip.compress(b"\0\0\x08" + bytes([array.ndim]) + sizes + array.tobytes())
                (folder / f"{first}-{kind}-ubyte.gz").write_bytes(packed)
    elif name == "svhn_cropped":
        import scipy.io

        for split, (images, labels, _) in made.items():
            stored = {
                "X": np.moveaxis(images, 0, -1),
                "y": np.where(labels == 0, 10, labels)[:, None],
            }
            scipy.io.savemat(folder / f"{split}_32x32.mat", stored)
    else:
        _write_cifar(folder, name, made)
    return folder


def _write_cifar(folder: Path, name: str, made) -> None:
    rows = {
        split: np.concatenate(
            [
                *([coarse[:, None]] if name == "cifar100" else []),
                labels[:, None],
                images.transpose(0, 3, 1, 2).reshape(len(images), -1),
            ],
            axis=1,
        )
        for split, (images, labels, coarse) in made.items()
    }
    if name == "cifar10":
        top, files = "cifar-10-batches-bin", {"test_batch.bin": rows["test"]}
        files |= {f"data_batch_{i + 1}.bin": rows["train"][5 * i : 5 * i + 5] for i in range(5)}
        names = {"batches.meta.txt": [f"class{i}" for i in range(10)]}
    else:
        top, files = "cifar-100-binary", {f"{split}.bin": each for split, each in rows.items()}
        names = {"coarse_label_names.txt": [f"coarse{i}" for i in range(20)],
                 "fine_label_names.txt": [f"fine{i}" for i in range(100)]}  # fmt: skip
    content = {file: each.tobytes() for file, each in files.items()}
    content |= {file: "\n".join([*each, ""]).encode() for file, each in names.items()}
    archive = "cifar-10-binary.tar.gz" if name == "cifar10" else "cifar-100-binary.tar.gz"
    with tarfile.open(folder / archive, "w:gz") as packed:
        for file, data in content.items():
            info = tarfile.TarInfo(f"{top}/{file}")
            info.size = len(data)
            packed.addfile(info, io.BytesIO(data))
