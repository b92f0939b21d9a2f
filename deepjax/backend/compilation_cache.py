"""JAX's persistent compilation cache, in the user's cache folder."""

import contextlib
import hashlib
import os
import platform
from pathlib import Path
from typing import Any

import jax

from deepjax.paths import user_cache_folder

MAX_BYTES = 2 * 2**30  # of a folder; a step of ResNet-50 takes a few million
MIN_COMPILE_SECONDS = 0.2  # programs that compile faster are not cached


def enable_compilation_cache() -> Path | None:
    """Enable the compilation cache in the user's cache folder; returns the folder.

    Called by commands, never by the library, because the setting is global to the process. None if
    JAX_COMPILATION_CACHE_DIR names another folder, if JAX_ENABLE_COMPILATION_CACHE is false, or if
    the folder cannot be written. Each kind of processor and number of threads has its own folder,
    because XLA compiles for the processor; above 2 GiB the oldest files are deleted.
    """
    settings: Any = jax.config
    if settings.jax_compilation_cache_dir is not None or not settings.jax_enable_compilation_cache:
        return None
    folder = user_cache_folder() / "deepjax" / "compiled" / processor_id()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    if not os.access(folder, os.W_OK):
        return None
    evict_oldest(folder, MAX_BYTES)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)
    return folder


def processor_id() -> str:
    """A name for the processor's features and the number of threads of this process."""
    features = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features += "".join(
            sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
        )
    threads = os.environ.get("NPROC") or (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    )
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:12]}-{threads}"


def evict_oldest(folder: Path, max_bytes: int) -> None:
    """Delete files, oldest first, until the rest fits; files deleted by others are no error.

    JAX's own jax_compilation_cache_max_size needs the package filelock, which is no dependency.
    """
    with contextlib.suppress(OSError):
        files = [(path.stat(), path) for path in folder.iterdir()]
        files.sort(key=lambda entry: entry[0].st_mtime, reverse=True)
        kept = 0
        for stat, path in files:
            kept += stat.st_size
            if kept > max_bytes:
                path.unlink(missing_ok=True)
