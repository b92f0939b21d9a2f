"""A report on the user's own images: what is there, and what will trouble a training."""

import collections
import dataclasses
import hashlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from deepjax.data.image.decode import decode_rgb, open_image
from deepjax.data.image.fixed_size import FORMATS
from deepjax.data.own.arrays import Arrays, pixel_counts, pixel_statistics
from deepjax.data.own.examples import Examples
from deepjax.data.own.index import open_index
from deepjax.data.threads import progress, thread_map
from deepjax.errors import InputError, describe_error

ORIENTATION = 0x0112  # tag of EXIF; 1 is upright
MEASURED = 1000  # training images of which mean and std are computed
SHOWN = 10  # names in the text
IMBALANCE = 10.0  # ratio of the largest class to the smallest that is pointed out


@dataclasses.dataclass(frozen=True)
class ImageFacts:
    """What is known of one image file."""

    digest: bytes
    width: int = 0
    height: int = 0
    mode: str = ""
    """Of Pillow: L is grey, P palette, RGBA and LA have alpha, CMYK four colours, I;16 16 bits."""
    format: str = ""
    rotated: bool = False
    """Whether EXIF asks to turn or mirror it, which is ignored in training."""
    animated: bool = False
    """Whether it has several frames, of which the first is used."""
    problem: str = ""
    """Why it cannot be decoded."""


@dataclasses.dataclass(frozen=True)
class ImageReport:
    """What a path to images holds. Names are those of the user's data."""

    path: str
    form: str
    counts: Mapping[str, Mapping[str, int]]
    """Images by split and class."""
    widths: tuple[int, int, int]
    """Least, median and greatest, in pixels, of images that can be decoded."""
    heights: tuple[int, int, int]
    modes: Mapping[str, int]
    formats: Mapping[str, int]
    rotated: int
    animated: int
    mean: tuple[float, ...]
    """Per channel, in units of 0 to 255, of up to 1,000 training images as RGB; of test images
    where there are no others."""
    std: tuple[float, ...]
    undecodable: Mapping[str, str]
    """Reason by name."""
    duplicates: Sequence[Sequence[str]]
    """Names of images with equal bytes, within a split."""
    leaks: Sequence[tuple[str, str]]
    """Names of training and test images with equal bytes."""

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return dataclasses.asdict(self)

    def warnings(self) -> list[str]:
        """What will trouble a training or a test, a sentence each."""
        split, classes = next(iter(self.counts.items()))
        least, most = (pick(classes, key=classes.__getitem__) for pick in (min, max))
        kind = "training" if split == "train" else "test"
        unbalanced = f"{most!r} has {classes[most]:,} {kind} images, {least!r} {classes[least]:,}"
        reasons = [f"{name} ({why})" for name, why in self.undecodable.items()]
        leaks = [f"{test} is {train}" for train, test in self.leaks]
        repeated = [" = ".join(names) for names in self.duplicates]
        found = {
            f"cannot be decoded: {_few(reasons)}": reasons,
            f"test images that are training images too: {_few(leaks)}": leaks,
            f"equal images: {_few(repeated)}": repeated,
            f"unbalanced classes: {unbalanced}": classes[most] > IMBALANCE * classes[least],
            f"EXIF rotation, which training ignores: {self.rotated:,} images": self.rotated,
            f"animated, of which the first frame is used: {self.animated:,} images": self.animated,
        }
        return [text for text, there in found.items() if there]

    def text(self) -> str:
        """The report on one screen; classes beyond `SHOWN` are in the JSON form."""
        splits = ", ".join(
            f"{sum(of_class.values()):,} {split}" for split, of_class in self.counts.items()
        )
        classes = len(next(iter(self.counts.values())))
        lines = [f"{self.path}: {self.form}, {classes} classes, {splits}"]
        lines += self._classes()
        widths, heights = ("{:,} to {:,}, median {:,}".format(*_least_most(each))
                           for each in (self.widths, self.heights))  # fmt: skip
        lines += [
            f"width {widths}; height {heights} pixels",
            f"modes: {_counted(self.modes)}; formats: {_counted(self.formats)}",
            f"mean {_numbers(self.mean)}, std {_numbers(self.std)} of 255",
        ]
        text = "\n".join([*lines, *(f"warning: {each}" for each in self.warnings())])
        return text.encode("utf-8", "backslashreplace").decode()  # names of other bytes

    def _classes(self) -> list[str]:
        names = next(iter(self.counts.values()))
        width = max(map(len, names))
        rows = [
            f"  {name:{width}}"
            + "".join(f"  {of_class[name]:>9,} {split}" for split, of_class in self.counts.items())
            for name in names
        ]
        if len(rows) > 2 * SHOWN:
            hidden = f"  ... {len(rows) - 2 * SHOWN} more classes"
            return [*rows[:SHOWN], hidden, *rows[-SHOWN:]]
        return rows


def check_images(path: str, test_fraction: float, split_seed: int = 0) -> ImageReport:
    """Decode every image at a path to the user's own data, and report.

    Raises InputError for what `open_index` refuses, and where none can be decoded that is measured.
    """
    index = open_index(path)
    splits = index.split(test_fraction, split_seed)
    facts: dict[str, list[ImageFacts]] = {}
    with progress("checking", sum(map(len, splits.values()))) as advance:
        for split, examples in splits.items():

            def look(i: int, examples: Examples = examples) -> ImageFacts:
                try:
                    found = examine(examples.encoded(i))
                except InputError as error:  # a link that leads nowhere
                    found = ImageFacts(b"", problem=str(error))
                advance(1)
                return found

            facts[split] = thread_map(look, range(len(examples)))
    good = [each for several in facts.values() for each in several if not each.problem]
    measured = "train" if "train" in splits else "test"
    if all(each.problem for each in facts[measured]):
        name, why = splits[measured].name(0), facts[measured][0].problem
        raise InputError(
            f"dataset {path!r}, split {measured!r}, has no image that can be decoded; {name}: {why}"
        )
    mean, std = statistics(splits[measured], facts[measured])
    return ImageReport(
        path=path,
        form=index.form,
        counts={
            split: dict(
                zip(
                    index.label_names,
                    np.bincount(each.labels, minlength=len(index.label_names)).tolist(),
                    strict=True,
                )
            )
            for split, each in splits.items()
        },
        widths=_spread([each.width for each in good]),
        heights=_spread([each.height for each in good]),
        modes=dict(collections.Counter(each.mode for each in good).most_common()),
        formats=dict(collections.Counter(each.format for each in good).most_common()),
        rotated=sum(each.rotated for each in good),
        animated=sum(each.animated for each in good),
        mean=mean,
        std=std,
        undecodable={
            examples.name(i): each.problem
            for split, examples in splits.items()
            for i, each in enumerate(facts[split])
            if each.problem
        },
        **_repeated(splits, facts),
    )


def examine(encoded: bytes) -> ImageFacts:
    """Decode an image. JPEG at an eighth of its size, which reads every byte and is fast."""
    digest = hashlib.sha256(encoded).digest()
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            facts = ImageFacts(
                digest,
                image.width,
                image.height,
                image.mode,
                str(image.format),
                "exif" in image.info and image.getexif().get(ORIENTATION, 1) != 1,
                getattr(image, "is_animated", False),
            )
    except Exception:  # the decoder below says why
        facts = ImageFacts(digest)
    try:
        with open_image(encoded) as image:
            image.draft(image.mode, (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
    except Exception as error:  # Pillow's kinds are many
        return dataclasses.replace(facts, problem=describe_error(error))
    return facts


def statistics(
    examples: Examples, facts: Sequence[ImageFacts]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the pixels of up to `MEASURED` images, each with one weight.

    Per channel of RGB, of arrays with four channels of these; in units of 0 to 255.
    """
    if isinstance(examples, Arrays) and examples.images.shape[-1] == 4:
        return examples.statistics()
    good = [i for i, each in enumerate(facts) if not each.problem]
    rows = [good[i] for i in np.linspace(0, len(good) - 1, min(MEASURED, len(good))).astype(int)]

    def frequencies(i: int) -> np.ndarray:
        pixels = decode_rgb(examples.encoded(i))
        return pixel_counts(pixels) / (pixels.size // 3)

    return pixel_statistics(np.sum(thread_map(frequencies, rows), axis=0))


def _repeated(
    splits: Mapping[str, Examples], facts: Mapping[str, Sequence[ImageFacts]]
) -> dict[str, Any]:
    """Images with equal bytes, within a split and between training and test."""
    names: dict[str, dict[bytes, list[str]]] = {}
    for split, examples in splits.items():
        of_split = names.setdefault(split, {})
        for i, each in enumerate(facts[split]):
            if each.digest:
                of_split.setdefault(each.digest, []).append(examples.name(i))
    repeated = [tuple(same) for each in names.values() for same in each.values() if len(same) > 1]
    train, test = names.get("train", {}), names.get("test", {})
    return {
        "duplicates": repeated,
        "leaks": [(train[each][0], test[each][0]) for each in test if each in train],
    }


def _spread(values: Sequence[int]) -> tuple[int, int, int]:
    return min(values), int(np.median(values)), max(values)


def _least_most(values: tuple[int, int, int]) -> tuple[int, int, int]:
    least, median, most = values
    return least, most, median


def _few(texts: Sequence[str]) -> str:
    rest = len(texts) - SHOWN
    shown = "; ".join(texts[:SHOWN]) + (f" and {rest:,} more (--json)" if rest > 0 else "")
    return f"{len(texts):,}: {shown}"


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def _numbers(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.2f}" for value in values) + ")"
