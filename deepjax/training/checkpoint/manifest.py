"""The manifest of a folder: the sha256 of every file, written last and synced.

So a partially written folder can always be detected. Orbax does not detect bit flips. Here every
file is checksummed, and corruption of any file, the manifest included, is detected before the state
is used.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from deepjax.io import sync_folder

NAME = "manifest.json"


def write_manifest(folder: Path, facts: dict[str, Any]) -> None:
    """Hash and sync every file of a folder, then write and sync its manifest. Raises OSError."""
    files = {}
    for path in _files(folder):
        files[path.relative_to(folder).as_posix()] = {
            "sha256": _hashed(path, sync=True),
            "bytes": path.stat().st_size,
        }
    _write(folder / NAME, facts | {"files": files})
    for path in (*(p for p in folder.rglob("*") if p.is_dir()), folder):
        sync_folder(path)


def change_manifest(folder: Path, **facts: Any) -> None:
    """Change some facts atomically. Raises OSError; ValueError if the manifest is corrupt."""
    partial = folder / f"{NAME}.partial"
    _write(partial, read_manifest(folder) | facts)
    partial.replace(folder / NAME)
    sync_folder(folder)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The facts and files of a manifest; raises ValueError if it is missing or corrupt."""
    try:
        return parse_manifest((folder / NAME).read_bytes())
    except OSError as error:
        raise ValueError(f"{NAME} is missing or unreadable ({error.strerror})") from error


def parse_manifest(content: bytes) -> dict[str, Any]:
    """The facts and files of a manifest's content; raises ValueError if it is corrupt."""
    head, _, body = content.partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != head:
        raise ValueError(f"{NAME} is corrupt (its sha256 differs)")
    try:
        manifest = json.loads(body)
        names = [
            Path(name)
            for name, file in manifest["files"].items()
            if str(file["sha256"]) and int(file["bytes"]) >= 0
        ]
        for fact, kind in (
            ("position", dict),
            ("step", int),
            ("time", float),
            ("metric", float | None),
        ):
            if not isinstance(manifest[fact], kind):
                raise TypeError(fact)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{NAME} is none of ours ({type(error).__name__})") from error
    if any(name.is_absolute() or ".." in name.parts for name in names):
        raise ValueError(f"{NAME} names files outside of its folder")
    return manifest


def problems(folder: Path) -> list[str]:
    """The defects of a folder, a line for each corrupt file; empty if it is valid."""
    try:
        files = read_manifest(folder)["files"]
    except ValueError as error:
        return [str(error)]
    found = []
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            found.append(f"{name} is missing")
        elif path.stat().st_size != expected["bytes"]:
            found.append(f"{name} has {path.stat().st_size} bytes, not {expected['bytes']}")
        elif _hashed(path) != expected["sha256"]:
            found.append(f"{name} is corrupt (its sha256 differs)")
    return found


def manifest_text(manifest: dict[str, Any]) -> str:
    """The content of a manifest: its own sha256, then the facts."""
    body = json.dumps(manifest, indent=1, sort_keys=True)
    return f"{hashlib.sha256(body.encode()).hexdigest()}\n{body}"


def _write(path: Path, manifest: dict[str, Any]) -> None:
    with path.open("w") as file:
        file.write(manifest_text(manifest))
        file.flush()
        os.fsync(file.fileno())


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _hashed(path: Path, sync: bool = False) -> str:
    with path.open("rb") as file:
        value = hashlib.file_digest(file, "sha256").hexdigest()
        if sync:
            os.fsync(file.fileno())
    return value
