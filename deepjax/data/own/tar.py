"""Images in tar files, as WebDataset writes them: read in place, without unpacking."""

import json
import re
import sys
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deepjax.data.own.examples import Examples
from deepjax.data.own.folder import OTHER_IMAGES, READABLE
from deepjax.data.own.grouping import group, splits_in_names
from deepjax.data.threads import progress
from deepjax.errors import InputError, require

LABELS = (".cls", ".json", ".txt")
LONGEST_LABEL = 2**20  # bytes of a file with a label
MOST_SHARDS = 100_000  # of a pattern
KEYS = ("label", "class", "cls")  # of a label in JSON


class Member(NamedTuple):
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
            with member.shard.open("rb") as file:
                file.seek(member.offset)
                found = file.read(member.size)
        except OSError as error:
            raise InputError(f"{member.shard} cannot be read: {error.strerror}") from error
        if len(found) < member.size:
            raise InputError(f"{member.shard} ends before {member.name}; copy it again")
        return found

    def sizes(self) -> list[int]:
        """The sizes of the members."""
        return [member.size for member in self.members]

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
    of_shards = splits_in_names(shards[0].parent, [shard.name for shard in shards])
    with progress("listing", len(shards), "tar files") as advance:
        for shard, split in zip(shards, of_shards, strict=True):
            for member, label in _images(shard):
                splits.append(split)
                labels.append(sys.intern(label))
                members.append(member)
            advance(1)
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
    count = int(last) - int(first) + 1
    require(count <= MOST_SHARDS, "dataset", path, f"a pattern of up to {MOST_SHARDS:,} files")
    return [
        f"{before}{number:0{len(first)}d}{after}" for number in range(int(first), int(last) + 1)
    ]


def _images(shard: Path) -> Iterator[tuple[Member, str]]:
    """The images of a shard with their labels, in its order."""
    images: list[tuple[str, Member]] = []
    contents: dict[str, dict[str, tuple[str, bytes]]] = {}
    try:
        with tarfile.open(shard, "r:") as archive:
            for info in archive:
                _add(shard, archive, info, images, contents)
                # tarfile keeps 1 kB of each, which nothing needs here
                archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
            end = archive.offset
    except (tarfile.TarError, OSError) as error:
        raise InputError(
            f"{shard} cannot be read as tar ({error}); allowed: without compression"
        ) from error
    _check_end(shard, end)
    labelled = bool(contents)
    if labelled and len({key for key, _ in images}) < len(images):
        seen: set[str] = set()
        twice = next(m for key, m in images if key in seen or seen.add(key))
        raise InputError(f"{shard} has two images of one sample: {twice.name}; keep one of them")
    for key, member in images:
        folder = member.name.rpartition("/")[0].rpartition("/")[2]
        found = contents.get(key, {})
        first = next((suffix for suffix in LABELS if suffix in found), None)
        label = _label(shard, *found[first]) if first else "" if labelled else folder.strip(".")
        if not label:
            raise InputError(
                f"{shard} has {member.name} without a label; allowed: a file of the same name with "
                f"the suffix {' or '.join(LABELS)}, or a folder for each class"
            )
        yield member, label


def _add(
    shard: Path,
    archive: tarfile.TarFile,
    info: tarfile.TarInfo,
    images: list[tuple[str, Member]],
    contents: dict[str, dict[str, tuple[str, bytes]]],
) -> None:
    """Note a member of a shard that is an image, or may hold the label of one."""
    folder, _, base = info.name.rpartition("/")
    stem, _, suffixes = base.partition(".")
    key, suffix = f"{folder}/{stem}", "." + suffixes.rpartition(".")[2].lower()
    if not stem or info.isdir():
        return
    if suffix in OTHER_IMAGES:
        raise InputError(f"{shard} has {info.name}, which is neither JPEG nor PNG; convert it")
    if suffix in (*READABLE, *LABELS) and (not info.isfile() or info.issparse()):
        raise InputError(f"{shard} has {info.name}, a link or a sparse file; store its bytes")
    if suffix in READABLE:
        images.append((key, Member(shard, info.name, info.offset_data, info.size)))
    elif suffix in LABELS:
        contents.setdefault(key, {})[suffix] = (info.name, _content(archive, info))


def _check_end(shard: Path, end: int) -> None:
    """Raise InputError where the members do not end with the zeros that end a tar file.

    `tarfile` ends quietly at a damaged header, and at the end of a file that was cut.
    """
    with shard.open("rb") as file:
        file.seek(end)
        block = file.read(tarfile.BLOCKSIZE)
    if not block or block.strip(b"\0"):
        raise InputError(f"{shard} is cut or damaged after byte {end:,}; copy it again")


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
    except (ValueError, TypeError, StopIteration, RecursionError) as error:
        raise InputError(
            f"{shard} has {name}, which holds no label; allowed: a number or a name, in JSON under "
            f"{' or '.join(KEYS)}"
        ) from error
