"""Compiled programs that outlive their process: a command's second start compiles little."""

import contextlib
import hashlib
import os
import platform
from pathlib import Path
from typing import Any

import jax

MOST_BYTES = 2 * 2**30  # of a folder; a step of ResNet-50 takes a few million
WORTH_SECONDS = 0.2  # what compiles faster is compiled again


def enable_compilation_cache() -> Path | None:
    """Let this process's JAX keep compiled programs in the user's folder of caches; returns the folder.

    Commands call this; the library never does, for the setting is the whole process's. JAX's own settings go first:
    JAX_COMPILATION_CACHE_DIR names another folder, JAX_ENABLE_COMPILATION_CACHE=false none. Nor is anything kept where the folder
    cannot be written. Each kind of processor and number of threads has a folder of its own, since XLA compiles for what it finds;
    of more than 2 GiB the oldest files go.
    """
    settings: Any = jax.config
    if settings.jax_compilation_cache_dir is not None or not settings.jax_enable_compilation_cache:
        return None
    folder = _users() / "deepjax" / "compiled" / processor_id()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    if not os.access(folder, os.W_OK):
        return None
    _forget_oldest(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", WORTH_SECONDS)
    return folder


def _users() -> Path:
    """XDG_CACHE_HOME, or its default."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    return Path(named) if Path(named).is_absolute() else Path.home() / ".cache"


def processor_id() -> str:
    """A name for what this process may use of this machine's processor."""
    can = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        can += "".join(
            sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
        )
    threads = os.environ.get("NPROC") or (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    )
    return f"{platform.machine()}-{hashlib.sha256(can.encode()).hexdigest()[:12]}-{threads}"


def _forget_oldest(folder: Path) -> None:
    """Remove files, the oldest first, until the rest fits; one that another process took away is no matter."""
    with contextlib.suppress(OSError):
        files = [(path.stat(), path) for path in folder.iterdir()]
        files.sort(key=lambda entry: entry[0].st_mtime, reverse=True)
        kept = 0
        for stat, path in files:
            kept += stat.st_size
            if kept > MOST_BYTES:
                path.unlink(missing_ok=True)
