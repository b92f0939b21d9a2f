"""Paths given by a user: `~` expanded, made absolute, and validated before any work."""

import os
import re
import unicodedata
from pathlib import Path

from deepjax.errors import InputError, require

AnyPath = str | os.PathLike[str]

_MAX_NAME = 255  # bytes, on every common file system
_MAX_PATH = 4095 - 256  # bytes: PATH_MAX of Linux, minus the longest path inside a run directory
# Unicode categories: control characters, and separators of lines and paragraphs.
_NOT_IN_A_LINE = ("Cc", "Zl", "Zp")
# /gs/bucket is gs://bucket to etils.epath, by which Orbax and tfds open files.
_BUCKETS = ("gs", "s3", "az", "hf")
# Glob characters to Orbax's search for its files; the backslash is a separator to tensorstore.
_GLOB = "*?[\\"


def user_path(given: AnyPath, field: str) -> Path:
    """An absolute path with `~` expanded; links and `..` are kept.

    Raises InputError that names the field: for an empty path, bytes that are not UTF-8, control
    characters, object storage (gs://...), the `~` of an unknown user, and too long names or paths.
    """
    require(isinstance(given, str | os.PathLike), field, given, "a path")
    text = os.fsdecode(given)
    require(bool(text), field, text, "a path that is not empty")
    remote = re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text)
    require(
        not remote,
        field,
        text,
        "a path of this machine, mounted storage too; URLs are not supported",
    )
    expanded = os.path.expanduser(text)
    known = not text.startswith("~") or expanded.startswith("/")
    require(known, field, text, "~, ~USER of a user of this machine, or an absolute path")
    try:
        path = Path(expanded).absolute()
    except FileNotFoundError:
        raise InputError(
            f"{field} is {text!r}; allowed: an absolute path, as the current folder was deleted"
        ) from None
    _check(path, field)
    return path


def run_directory(given: AnyPath, field: str = "out") -> Path:
    """A `user_path` under which checkpoints can be saved: without * ? [ and backslash.

    Under such a name Orbax 0.12 does not find the files that it wrote, or finds those of another
    folder. Raises InputError.
    """
    path = user_path(given, field)
    found = sorted(set(_GLOB) & set(str(path)))
    allowed = (
        f"a path without {' '.join(found)} in any name, for checkpoints cannot be saved there; "
        "a link without may point to it"
    )
    require(not found, field, str(path), allowed)
    return path


def user_cache_folder() -> Path:
    """XDG_CACHE_HOME, or its default."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    return Path(named) if Path(named).is_absolute() else Path.home() / ".cache"


def _check(path: Path, field: str) -> None:
    text = str(path)
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InputError(
            f"{field} is {text!r}; allowed: a path in UTF-8, which its bytes are not"
        ) from None
    in_a_line = not any(unicodedata.category(character) in _NOT_IN_A_LINE for character in text)
    require(in_a_line, field, text, "a path without line breaks and other control characters")
    remote = path.parts[1:2] and path.parts[1] in _BUCKETS
    require(
        not remote,
        field,
        text,
        f"a path that does not begin with /{path.parts[1:2][0] if remote else ''}/, read as a URL",
    )
    scheme = next((name for name in path.parts if name.endswith(":")), "")
    require(
        not scheme,
        field,
        text,
        f"a path without a name that ends in a colon ({scheme!r}), read as a URL",
    )
    longest = max(len(name.encode()) for name in path.parts)
    require(
        longest <= _MAX_NAME,
        field,
        f"{text[:40]}...",
        f"names of up to {_MAX_NAME} bytes; one has {longest}",
    )
    require(
        size <= _MAX_PATH,
        field,
        f"{text[:40]}...",
        f"a path of up to {_MAX_PATH} bytes; it has {size}",
    )
