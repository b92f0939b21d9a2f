"""Images in tar files, as WebDataset writes them: read in place, without unpacking."""

import json
import os
import re
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deepjax.data.own.examples import Examples
from deepjax.data.own.folder import OTHER_IMAGES, READABLE
from deepjax.data.own.grouping import TRAIN_NAMES, group, split_folders, splits_in_names
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

    @property
    def folder(self) -> str:
        """The folder that the file lies in, within the tar file."""
        return sys.intern(self.name.rpartition("/")[0])


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
    (a number or a name) or .json (with a key of `KEYS`). Without any the folders say class and
    split, as those of `index_folder` do; folders that all images have in common do not count.
    Hidden files are ignored. Raises InputError for a compressed or damaged tar file, an image
    without a label, a folder of another split than the shard's, and as `group` and `split_folders`
    do.
    """
    where = shards[0].parent
    splits: list[str] = []
    labels: list[str] = []
    members: list[Member] = []
    of_shards = splits_in_names(where, [shard.name for shard in shards])
    with progress("listing", len(shards), "tar files") as advance:
        for shard, split in zip(shards, of_shards, strict=True):
            for member, label in _images(shard):
                splits.append(split)
                labels.append(sys.intern(label))
                members.append(member)
            advance(1)
    if not members:
        raise InputError(f"{shards[0]} has no JPEG or PNG images")
    unlabelled = [row for row, label in enumerate(labels) if not label]
    one_of_each = {members[row].folder: members[row] for row in unlabelled}
    of_folders = _splits_and_classes(where, one_of_each)
    for row in unlabelled:
        member, mine = members[row], splits[row]
        split, labels[row] = of_folders[member.folder]
        if split and len({*of_shards}) > 1 and (split == "train") != (mine == "train"):
            raise InputError(
                f"{member.shard} has {member.name!r}, in a folder of another split; name them alike"
            )
        splits[row] = split or mine
    return group(
        where, splits, labels,
        lambda of_rows, rows: TarMembers(of_rows, [members[row] for row in rows]),
    )  # fmt: skip


def _splits_and_classes(where: Path, images: Mapping[str, Member]) -> dict[str, tuple[str, str]]:
    """The split, "" for none, and the class of each folder. images: one of each folder."""
    paths = {folder: _parts(folder) for folder in images}
    for folder, path in paths.items():
        if not path or not folder.isprintable():
            raise _without_label(images[folder])
    joined = ["/".join(path) for path in paths.values()]
    common = len(_parts(os.path.commonpath(joined))) if joined else 0
    start = min([common, *(len(path) - 1 for path in paths.values())])  # the name of a single class
    inner: dict[str, set[str]] = {}
    direct: set[str] = set()
    for folder, *more in (path[start:] for path in paths.values()):
        inner.setdefault(folder, set()).update(more[:1])
        if not more:
            direct.add(folder)
    known = split_folders(where, sorted(inner), lambda name: () if name in direct else inner[name])
    found: dict[str, tuple[str, str]] = {}
    for folder, path in paths.items():
        first, *more = path[start:]
        if known and not more:
            raise _without_label(images[folder])
        split = "train" if first.lower() in TRAIN_NAMES else first.lower()
        found[folder] = (split, more[0]) if known else ("", first)
    return found


def _parts(folder: str) -> list[str]:
    return [part for part in folder.split("/") if part not in ("", ".")]


def _without_label(member: Member) -> InputError:
    return InputError(
        f"{member.shard} has {member.name!r} without a label; allowed: a file of the same name "
        f"with the suffix {' or '.join(LABELS)}, or a folder for each class"
    )


def brace_expansion(path: str) -> list[str]:
    """The names that shard-{000000..000003}.tar stands for; a name without braces alone.

    Raises InputError for a pattern of no or of too many files.

    >>> brace_expansion("a-{08..10}.tar")
    ['a-08.tar', 'a-09.tar', 'a-10.tar']
    """
    found = re.fullmatch(r"(.*)\{(\d+)\.\.(\d+)\}(.*)", path)
    if not found:
        return [path]
    before, first, last, after = found.groups()
    count = int(last) - int(first) + 1
    allowed = f"{{FIRST..LAST}} of 1 to {MOST_SHARDS:,} files"
    require(1 <= count <= MOST_SHARDS, "dataset", path, allowed)
    return [
        f"{before}{number:0{len(first)}d}{after}" for number in range(int(first), int(last) + 1)
    ]


def _images(shard: Path) -> Iterator[tuple[Member, str]]:
    """The images of a shard with their labels, "" where it has no files of labels."""
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
        found = contents.get(key, {})
        first = next((suffix for suffix in LABELS if suffix in found), None)
        if labelled and not first:
            raise _without_label(member)
        yield member, _label(shard, *found[first]) if first else ""


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
    hidden = not stem or any(p.startswith(".") and p != ".." for p in _parts(folder))
    if hidden or info.isdir():
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
            value = next(found[key] for key in KEYS if key in found)
            if type(value) not in (str, int):
                raise TypeError(value)
            text = str(value)
        if not text or not text.isprintable():
            raise ValueError(text)
        return text
    except (ValueError, TypeError, StopIteration, RecursionError) as error:
        raise InputError(
            f"{shard} has {name}, which holds no label; allowed: a number or a name, in JSON under "
            f"{' or '.join(KEYS)}"
        ) from error
