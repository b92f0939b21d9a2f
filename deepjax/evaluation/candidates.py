"""The networks that a pattern means: by name, by public weights, or run directories."""

import dataclasses
import fnmatch
import glob
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from deepjax.errors import InputError
from deepjax.models import list_models
from deepjax.models.weights_table import PUBLIC_WEIGHTS
from deepjax.paths import user_path
from deepjax.training.checkpoint.inspect import steps_of
from deepjax.training.run_directory.config_file import read_config
from deepjax.training.transfer.described import is_run

ALL = "all"  # as in timm's validate.py
SUFFIXES = (".safetensors", ".npz", ".pth")
DIGITS_OF_SHA256 = 12


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Weights of a network, or a run."""

    model: str
    source: str
    revision: str = ""
    """The step of a run, the start of a file's sha256; "" for a repository."""
    is_run: bool = False

    @property
    def key(self) -> tuple[str, str, str]:
        """That of its row in the table."""
        return self.model, self.source, self.revision


def find_candidates(patterns: Sequence[str], folder: Path | None = None) -> list[Candidate]:
    """What the patterns match, each once, in the order of the patterns.

    A pattern without "/" matches names of networks ("resnet*"; "all" is "*"): each with the most
    accurate of its public weights that can be downloaded, or with NAME.safetensors, .npz or .pth of
    `folder`. One with "/" matches sources of public weights ("timm/resnet50.*"), or else run
    directories ("runs/*"). Raises InputError for a pattern that matches nothing.
    """
    found: list[Candidate] = []
    for pattern in patterns:
        if folder is not None:
            some = _in_folder(pattern, user_path(folder, "weights_dir"))
            what = f"names of networks (`deepjax models`) with a file NAME.safetensors in {folder}"
        elif "/" in pattern:
            some = _public(pattern) or _runs(pattern)
            what = "public weights (`deepjax models NAME`), or run directories with a checkpoint"
        else:
            some = _most_accurate(pattern)
            what = "names of networks with public weights (`deepjax models`), or give --weights-dir"
        if not some:
            raise InputError(f"models has {pattern!r}, which matches nothing; allowed: {what}")
        found += some
    return list(dict.fromkeys(found))


def _names(pattern: str) -> list[str]:
    return list_models("*" if pattern == ALL else pattern)


def _in_folder(pattern: str, folder: Path) -> list[Candidate]:
    if not folder.is_dir():
        raise InputError(f"weights_dir is {str(folder)!r}; allowed: a folder")
    paths = [(name, folder / f"{name}{suffix}") for name in _names(pattern) for suffix in SUFFIXES]
    return [Candidate(name, str(path), _sha256(path)) for name, path in paths if path.is_file()]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256 {hashlib.file_digest(file, 'sha256').hexdigest()[:DIGITS_OF_SHA256]}"


def _public(pattern: str) -> list[Candidate]:
    return [
        Candidate(name, source)
        for name, rows in PUBLIC_WEIGHTS.items()
        for source in rows
        if fnmatch.fnmatchcase(source, pattern)
    ]


def _most_accurate(pattern: str) -> list[Candidate]:
    """Of weights that only torchvision has none can be downloaded: they come last."""
    known = [(name, rows) for name in _names(pattern) if (rows := PUBLIC_WEIGHTS.get(name))]
    return [
        Candidate(name, max(rows, key=lambda of, rows=rows: ("/" in of, rows[of].top1)))
        for name, rows in known
    ]


def _runs(pattern: str) -> list[Candidate]:
    paths = [Path(path) for path in sorted(glob.glob(os.path.expanduser(pattern))) if is_run(path)]
    steps = [(path, steps_of(path / "checkpoints")) for path in paths]
    return [
        Candidate(read_config(path).model, str(path), f"step {kept[-1]}", is_run=True)
        for path, kept in steps
        if kept
    ]
