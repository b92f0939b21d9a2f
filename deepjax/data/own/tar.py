"""Images in tar files, as WebDataset writes them: read in place, without unpacking."""

import functools
import json
import os
import re
import tarfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deepjax.data.own.examples import Examples
from deepjax.data.own.folder import READABLE
from deepjax.data.own.grouping import group, split_in_name
from deepjax.errors import InputError

LABELS = (".cls", ".json", ".txt")
LONGEST_LABEL = 2**20  # bytes of a file with a label
KEYS = ("label", "class", "cls")  # of a label in JSON


@dataclass(frozen=True)
class Member:
    """Where a file lies in a tar file."""

    shard: Path
    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class TarMembers(Examples):
    """Image files in tar files."""

    members: list[Member]

    def name(self, index: int) -> str:
        """SHARD/NAME."""
        return f"{self.members[index].shard.name}/{self.members[index].name}"

    def encoded(self, index: int) -> bytes:
        """The bytes of the member."""
        member = self.members[index]
        try:
            found = os.pread(_file(member.shard), member.size, member.offset)
        except OSError as error:
            raise InputError(f"{member.shard} cannot be read: {error.strerror}") from error
        if len(found) < member.size:
            raise InputError(f"{member.shard} ends before {member.name}; copy it again")
        return found

    def size(self, index: int) -> int:
        """The size of the member."""
        return self.members[index].size

    def part(self, rows: np.ndarray) -> "TarMembers":
        """The members of these rows."""
        return TarMembers(self.labels[rows], [self.members[row] for row in rows.tolist()])


def index_tars(shards: Sequence[Path]) -> tuple[tuple[str, ...], dict[str, Examples]]:
    """The classes and the splits of tar files; the name of a shard says its split.

    A label is in a file with the name of its image up to the first dot and the suffix .cls, .txt
    (a number or a name) or .json (with a key of `KEYS`); without any it is the folder of the image.
    Raises InputError for a compressed or damaged tar file, an image without a label, and as `group`
    does.
    """
    splits: list[str] = []
    labels: list[str] = []
    members: list[Member] = []
    for shard in shards:
        for member, label in _images(shard):
            splits.append(split_in_name(shard.name))
            labels.append(label)
            members.append(member)
    if not members:
        raise InputError(f"{shards[0]} has no JPEG or PNG images")
    return group(
        shards[0].parent, splits, labels,
        lambda of_rows, rows: TarMembers(of_rows, [members[row] for row in rows]),
    )  # fmt: skip


def brace_expansion(path: str) -> list[str]:
    """The names that shard-{000000..000003}.tar stands for; a name without braces alone.

    >>> brace_expansion("a-{08..10}.tar")
    ['a-08.tar', 'a-09.tar', 'a-10.tar']
    """
    found = re.fullmatch(r"(.*)\{(\d+)\.\.(\d+)\}(.*)", path)
    if not found:
        return [path]
    before, first, last, after = found.groups()
    return [
        f"{before}{number:0{len(first)}d}{after}" for number in range(int(first), int(last) + 1)
    ]


def _images(shard: Path) -> Iterator[tuple[Member, str]]:
    images: dict[str, Member] = {}
    labels: dict[str, str] = {}
    try:
        with tarfile.open(shard, "r:") as archive:
            for info in archive:
                if not info.isfile():
                    continue
                folder, _, base = info.name.rpartition("/")
                stem, _, suffixes = base.partition(".")
                key, suffix = f"{folder}/{stem}", "." + suffixes.rpartition(".")[2].lower()
                if suffix in READABLE and not stem.startswith("."):
                    images[key] = Member(shard, info.name, info.offset_data, info.size)
                elif suffix in LABELS:
                    labels[key] = _label(shard, info.name, _content(archive, info))
    except (tarfile.TarError, OSError) as error:
        raise InputError(
            f"{shard} cannot be read as tar ({error}); allowed: without compression"
        ) from error
    for key, member in images.items():
        folder = member.name.rpartition("/")[0].rpartition("/")[2]
        label = labels.get(key, "") if labels else folder.strip(".")
        if not label:
            raise InputError(
                f"{shard} has {member.name} without a label; allowed: a file of the same name with "
                f"the suffix {' or '.join(LABELS)}, or a folder for each class"
            )
        yield member, label


def _content(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    """The bytes of a label; none of one that is too long for a label."""
    file = archive.extractfile(info) if info.size <= LONGEST_LABEL else None
    return file.read() if file else b""


def _label(shard: Path, name: str, content: bytes) -> str:
    try:
        text = content.decode().strip()
        if name.lower().endswith(".json"):
            found = json.loads(text)
            text = str(next(found[key] for key in KEYS if key in found))
        if not text or not text.isprintable():
            raise ValueError(text)
        return text
    except (ValueError, TypeError, StopIteration) as error:
        raise InputError(
            f"{shard} has {name}, which holds no label; allowed: a number or a name, in JSON under "
            f"{' or '.join(KEYS)}"
        ) from error


_OPENING = threading.Lock()


def _file(shard: Path) -> int:
    with _OPENING:
        return _open(shard)


@functools.cache
def _open(shard: Path) -> int:
    return os.open(shard, os.O_RDONLY)
