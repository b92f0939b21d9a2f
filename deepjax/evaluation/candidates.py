"""The networks that a pattern means: by name, by public weights, or run directories."""

import dataclasses
import fnmatch
import glob
import os
from collections.abc import Sequence
from pathlib import Path

from deepjax.errors import InputError, describe_error
from deepjax.io import sha256_of
from deepjax.models import list_models
from deepjax.models.weights_table import PUBLIC_WEIGHTS
from deepjax.paths import user_path
from deepjax.training.checkpoint.inspect import steps_of
from deepjax.training.checkpoint.manifest import NAME as MANIFEST
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
    """The step of a run and the start of the sha256 of its checkpoint's manifest; of a file that of
    its sha256; "" for a repository."""
    is_run: bool = False
    error: str = ""
    """Why a run cannot be read, in one line; `model` is the name of its folder then."""

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
            what = (
                "names of networks with public weights that can be downloaded (`deepjax models "
                "NAME`), or give --weights-dir"
            )
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
    return f"sha256 {sha256_of(path)[:DIGITS_OF_SHA256]}"


def _public(pattern: str) -> list[Candidate]:
    return [
        Candidate(name, source)
        for name, rows in PUBLIC_WEIGHTS.items()
        for source in rows
        if fnmatch.fnmatchcase(source, pattern)
    ]


def _most_accurate(pattern: str) -> list[Candidate]:
    """Of the weights in a repository; those that only torchvision has cannot be downloaded."""
    top1 = {
        name: {source: row.top1 for source, row in rows.items() if "/" in source}
        for name, rows in PUBLIC_WEIGHTS.items()
    }
    names = [name for name in _names(pattern) if top1.get(name)]
    return [Candidate(name, max(top1[name], key=top1[name].__getitem__)) for name in names]


def _runs(pattern: str) -> list[Candidate]:
    paths = [Path(path) for path in sorted(glob.glob(os.path.expanduser(pattern))) if is_run(path)]
    steps = [(path, steps_of(path / "checkpoints")) for path in paths]
    return [_run(path, kept[-1]) for path, kept in steps if kept]


def _run(path: Path, step: int) -> Candidate:
    try:
        model = read_config(path).model
        sha256 = _sha256(path / "checkpoints" / str(step) / MANIFEST)
    except InputError as error:
        return Candidate(path.name, str(path), is_run=True, error=" ".join(str(error).split()))
    except OSError as error:
        return Candidate(path.name, str(path), is_run=True, error=describe_error(error))
    return Candidate(model, str(path), f"step {step}, {sha256}", is_run=True)
