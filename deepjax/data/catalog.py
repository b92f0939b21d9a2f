"""The catalogue of data sets: shapes, classes, statistics and label-preserving augmentations."""

import dataclasses
import functools
import re
from typing import Any

from deepjax.data.dataset_checks import validate_fields
from deepjax.data.own.arrays import Arrays
from deepjax.data.own.folder import FORMS
from deepjax.data.own.index import (
    TEST_FRACTION,
    Index,
    exists,
    looks_like_path,
    open_index,
    split_options,
)
from deepjax.data.split_spec import SplitName
from deepjax.errors import InputError, require, unknown_name_error
from deepjax.storage.url import is_url


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A classification data set; mean and std in stored uint8 units, per channel or one for all.

    `shape`: height, width and channels (1, 3 or 4) of the stored images. `encoded`: the images are
    stored as JPEG of any size, and decoded to RGB and cropped to `shape`, a square, when they are
    read. `flip` is False where a mirrored image is of another class or none (digits, house
    numbers); `crop` is the padding in pixels of a random crop (He et al. 2015, section 4.2: 4 at 32
    pixels).

    `path`: of the user's own data, in place of a builder; `own_dataset` makes such a data set.
    Without a test split `test_fraction` of each class, chosen by `split_seed`, is for tests; with 1
    all images are.
    `label_names`: the names of the classes, where they are known here.

    `builder` is the name in tfds where it differs, with its configuration; `label` the feature of a
    record that holds the class. `train_split` and `test_split` are splits of the builder or parts
    of them in tfds's notation: "train[:80%]" and "train[80%:]". `train_size` and `test_size` are
    their numbers of images; a set without training images is for tests alone.

    Raises InputError, naming the field, for a value that no data set can have; `load_split`
    compares the fields with the data.
    """

    name: str
    shape: tuple[int, int, int]
    num_classes: int
    train_size: int
    test_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    crop: int
    source: str
    encoded: bool = False
    builder: str = ""
    test_split: str = "test"
    label: str = "label"
    train_split: str = "train"
    path: str = ""
    test_fraction: float = 0.0
    split_seed: int = 0
    label_names: tuple[str, ...] = ()

    def __post_init__(self):
        for field, value in validate_fields(vars(self)).items():
            object.__setattr__(self, field, value)
        object.__setattr__(self, "builder", self.builder or self.name)

    @property
    def splits(self) -> dict[SplitName, tuple[str, int]]:
        """The splits that have images: their name in tfds and number of images."""
        declared: dict[SplitName, tuple[str, int]] = {
            "train": (self.train_split, self.train_size),
            "test": (self.test_split, self.test_size),
        }
        return {split: (name, size) for split, (name, size) in declared.items() if size}


_PART = re.compile(r"(.+?)(?:\[:(\d+)\])?(?:\[-(\d+):\])?")
_NUMBER = r"\d*\.?\d+(?:e-?\d+)?"
_SPLIT = re.compile(rf"(.+)\[test_fraction=({_NUMBER})(?:,split_seed=(\d+))?\]")


def _unit(*values: float) -> tuple[float, ...]:
    return tuple(255 * value for value in values)


IMAGENET_MEAN, IMAGENET_STD = _unit(0.485, 0.456, 0.406), _unit(0.229, 0.224, 0.225)
_IMAGENETTE = "fast.ai, github.com/fastai/imagenette"


def _imagenet(
    name: str,
    train_size: int,
    test_size: int,
    source: str,
    side: int = 224,
    classes: int = 1000,
    **rest,
) -> Dataset:
    """Photographs in ImageNet's form, with ImageNet's mean and std (as torchvision's weights)."""
    return Dataset(
        name,
        (side, side, 3),
        classes,
        train_size,
        test_size,
        IMAGENET_MEAN,
        IMAGENET_STD,
        True,
        0,
        source,
        encoded=True,
        **rest,
    )


CATALOG = {
    dataset.name: dataset
    for dataset in (
        Dataset(
            "digits", (8, 8, 1), 10, 1437, 360,
            (4.8812,), (6.0108,), False, 1, "UCI optical digits, scikit-learn's copy",
        ),
        Dataset(
            "fashion_mnist_small", (14, 14, 1), 10, 16_000, 4000,
            (73.0613,), (84.3566,), True, 1, "a subset of arXiv:1708.07747 at half size",
        ),
        Dataset(
            "fashion_mnist", (28, 28, 1), 10, 60_000, 10_000,
            _unit(0.2860), _unit(0.3530), True, 2, "arXiv:1708.07747",
        ),
        Dataset(
            "cifar10", (32, 32, 3), 10, 50_000, 10_000,
            _unit(0.4914, 0.4822, 0.4465), _unit(0.2470, 0.2435, 0.2616),
            True, 4, "Krizhevsky 2009",
        ),
        Dataset(
            "cifar100", (32, 32, 3), 100, 50_000, 10_000,
            _unit(0.5071, 0.4865, 0.4409), _unit(0.2673, 0.2564, 0.2762),
            True, 4, "Krizhevsky 2009",
        ),
        Dataset(
            "svhn_cropped", (32, 32, 3), 10, 73_257, 26_032,
            _unit(0.4377, 0.4438, 0.4728), _unit(0.1980, 0.2010, 0.1970),
            False, 4, "Netzer et al. 2011",
        ),
        _imagenet("imagenet2012", 1_281_167, 50_000, "arXiv:1409.0575", test_split="validation"),
        _imagenet("imagenette/160px-v2", 9469, 3925, _IMAGENETTE, 160, 10, test_split="validation"),
        _imagenet("imagenette/320px-v2", 9469, 3925, _IMAGENETTE, 224, 10, test_split="validation"),
        _imagenet(
            "imagenette/full-size-v2", 9469, 3925, _IMAGENETTE, 224, 10, test_split="validation",
        ),
        # ImageNet's classes again, for tests: new photographs, new labels (several or none an
        # image), hard ones, renditions.
        _imagenet(
            "imagenet_v2", 0, 10_000, "arXiv:1902.10811", builder="imagenet_v2/matched-frequency",
        ),
        _imagenet(
            "imagenet2012_real", 0, 50_000, "arXiv:2006.07159",
            test_split="validation", label="real_label",
        ),
        _imagenet("imagenet_a", 0, 7500, "arXiv:1907.07174; 200 of the classes occur"),
        _imagenet("imagenet_r", 0, 30_000, "arXiv:2006.16241; 200 of the classes occur"),
    )
}  # fmt: skip


def list_datasets() -> list[str]:
    """The names of the data sets."""
    return list(CATALOG)


def dataset_info(name: str) -> Dataset:
    """The data set of that name or at that path, or a part of it.

    A path is to the user's own data (`own_dataset`); a name of the catalog goes first.
    PATH[test_fraction=0.1,split_seed=3] has other images for tests than PATH. NAME[:N] has the
    first N training images only. NAME[-N:] holds out the last N training images for validation:
    they take the place of the test images. NAME[:M][-N:] does both. Raises InputError with the
    nearest name for any other.

    >>> dataset_info("digits").shape
    (8, 8, 1)
    >>> dataset_info("digits[:400]").train_size
    400
    >>> held_out = dataset_info("digits[-100:]")
    >>> held_out.train_size, held_out.test_split
    (1337, 'train[1337:]')
    """
    if complete := _complete(name):
        return complete
    found = _PART.fullmatch(name)
    whole = found[1] if found else name
    if found and (complete := _complete(whole)):
        return _part(complete, name, found[2], found[3])
    allowed = "a folder of this machine: copy your images there, or mount the bucket (gcsfuse)"
    require(not is_url(name), "dataset", name, allowed)
    if looks_like_path(name):
        raise InputError(f"dataset is {name!r}, which does not exist; allowed: {FORMS}")
    raise unknown_name_error("dataset", whole, [*CATALOG, "the path of a folder of images"])


def _complete(name: str) -> Dataset | None:
    """The data set of a name or at a path, with the split that its name says."""
    if name in CATALOG:
        return CATALOG[name]
    if exists(name):
        return own_dataset(name)
    if (found := _SPLIT.fullmatch(name)) and exists(found[1]):
        fraction, seed = split_options(found[1], float(found[2]), int(found[3] or 0))
        return own_dataset(found[1], name, test_fraction=fraction, split_seed=seed)
    return None


def require_no_folder(name: str) -> None:
    """Raise InputError for a data set of the catalogue where a folder of its name holds images too.

    For names that a user types, who may mean either.
    """
    known = name.partition("[")[0]
    if known not in CATALOG or not exists(known):
        return
    try:
        open_index(known)
    except InputError:
        return
    raise InputError(
        f"dataset is {name!r}, a data set of the catalogue, and there are images at that path; "
        f"give ./{name} for these, or rename them"
    )


def named_split(name: str, test_fraction: float | None, split_seed: int | None) -> str:
    """The name of the user's own data with another split for tests; None: the default.

    Raises InputError as `split_options` does, and for a name that is no path, or has a split.

    >>> named_split("digits", None, None)
    'digits'
    """
    if test_fraction is None and split_seed is None:
        return name
    field = "split_seed" if test_fraction is None else "test_fraction"
    given = split_seed if test_fraction is None else test_fraction
    is_path = name not in CATALOG and exists(name)
    require(is_path, field, given, f"the path of your own images as dataset, which {name!r} is not")
    fraction, seed = split_options(name, test_fraction, split_seed)
    return f"{name}[test_fraction={fraction!r}" + (f",split_seed={seed}]" if seed else "]")


def _part(whole: Dataset, name: str, first: str | None, held_out: str | None) -> Dataset:
    """A data set with its first training images only, its last ones for validation, or both."""
    size, split = whole.train_size, whole.train_split
    rest = size - int(held_out or 0)
    count = int(first) if first else rest
    allowed = f"{whole.name}[:M][-N:] with M and N from 1, together up to {size}"
    require(1 <= count <= rest and rest < size + (not held_out), "dataset", name, allowed)
    simple = "[" not in split and "+" not in split
    require(simple, "dataset", name, f"{whole.name}, which is a part of a split already")
    held = {"test_split": f"{split}[{rest}:]", "test_size": size - rest} if held_out else {}
    part = f"{split}[:{count}]"
    return dataclasses.replace(whole, name=name, train_size=count, train_split=part, **held)


def own_dataset(
    path: str,
    name: str = "",
    size: int = 224,
    test_fraction: float = TEST_FRACTION,
    split_seed: int = 0,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    flip: bool = True,
    crop: int | None = None,
) -> Dataset:
    """The user's own images, in any form of `deepjax.data.own.folder.FORMS`.

    `--dataset PATH` gives them with these defaults; `register` gives other ones a name. `size`:
    pixels a side of what the network sees of photographs; arrays keep theirs. `test_fraction`: part
    of each class for tests, chosen by `split_seed`, where the data have no test split. `mean` and
    `std`: in units of 0 to 255; by default ImageNet's, of arrays those of their training images.
    `flip`: whether a mirrored image is of the same class. `crop`: padding of random crops of
    arrays, by default an eighth of their height, as 4 at 32 pixels. Raises InputError for data that
    cannot be read as such.
    """
    require(0 < test_fraction <= 1, "test_fraction", test_fraction, "above 0, up to 1")
    require(split_seed >= 0, "split_seed", split_seed, "0 or more")
    index = open_index(path)
    splits = index.split(test_fraction, split_seed)
    some = splits.get("train", splits.get("test"))
    shape, measured = (size, size, 3), (IMAGENET_MEAN, IMAGENET_STD)
    if isinstance(some, Arrays):
        shape, measured = some.images.shape[1:], _measured(index, test_fraction, split_seed)
    return Dataset(
        name or path,
        shape,
        len(index.label_names),
        len(splits.get("train", ())),
        len(splits.get("test", ())),
        tuple(mean) or measured[0],
        tuple(std) or measured[1],
        flip,
        crop if crop is not None else shape[0] // 8 if isinstance(some, Arrays) else 0,
        f"{index.form}, {path}",
        encoded=not isinstance(some, Arrays),
        path=path,
        test_fraction=test_fraction,
        split_seed=split_seed,
        label_names=index.label_names,
    )


@functools.lru_cache(maxsize=4)
def _measured(
    index: Index, test_fraction: float, split_seed: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of the training images of arrays, once in a process."""
    splits = index.split(test_fraction, split_seed)
    arrays: Any = splits.get("train", splits.get("test"))
    return arrays.statistics()


def register(dataset: Dataset) -> Dataset:
    """Register a custom data set under its name (any tfds builder or config); returns it.

    Raises InputError where the name is taken by another definition, the same one again is accepted,
    and where it is that of a file or folder, which the command line would take for the data.
    `load_split` checks that the prepared data match the definition.
    """
    if not isinstance(dataset, Dataset):
        raise InputError(f"dataset is {dataset!r}; allowed: a deepjax.data.Dataset")
    if dataset.name not in CATALOG and exists(dataset.name):
        raise InputError(
            f"name of a data set is {dataset.name!r}, which is a file or folder; register it under "
            "another name"
        )
    known = CATALOG.setdefault(dataset.name, dataset)
    if known != dataset:
        raise InputError(
            f"dataset {dataset.name!r} is another one already ({known.source}); register it under "
            "another name"
        )
    return known
