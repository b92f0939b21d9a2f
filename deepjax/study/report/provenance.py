"""How a result was made: command, versions, hardware and wall time."""

import importlib.metadata
import os
import platform
import shlex
import sys
from pathlib import Path

PACKAGES = (
    "deepjax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "tensorflow-datasets",
    "numpy",
)


def provenance(seconds: float, device: str) -> dict[str, str]:
    """The command to repeat a result, and the versions, hardware and wall time that it had."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    machine = f"{os.cpu_count()} CPU cores ({platform.machine()}), {platform.system()}"
    return {
        "command": "python " + shlex.join([_relative(sys.argv[0]), *sys.argv[1:]]),
        "versions": f"Python {platform.python_version()}, {versions}",
        "hardware": f"{device}; {machine}",
        "wall time": f"{seconds:.0f} s",
    }


def _relative(script: str) -> str:
    """Relative to the working directory, so that no published command names one of this machine."""
    return os.path.relpath(script) if Path(script).is_relative_to(Path.cwd()) else script
