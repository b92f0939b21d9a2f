"""How a result was made: command, versions, hardware and wall time."""

import importlib.metadata
import os
import platform
import shlex
import sys
from collections.abc import Sequence
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
    versions = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    machine = f"{os.cpu_count()} CPU cores ({platform.machine()}), {platform.system()}"
    return {
        "command": _command(sys.argv),
        "versions": f"Python {platform.python_version()}, {versions}",
        "hardware": f"{device}; {machine}",
        "wall time": f"{seconds:.0f} s",
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # a clone on PYTHONPATH
        return "(not installed)"


def _command(arguments: Sequence[str]) -> str:
    """The command line, by the name `deepjax` where it is that command."""
    program, *rest = map(_relative, arguments)
    *packages, file = ("", *Path(program).parts)[-3:]
    is_command = file == "deepjax" or (file == "__main__.py" and "deepjax" in packages)
    return shlex.join(["deepjax", *rest] if is_command else ["python", program, *rest])


def _relative(argument: str) -> str:
    """A path in the working directory relative to it, so that no published command names one of
    this machine; any other argument as it is.
    """
    return os.path.relpath(argument) if Path(argument).is_relative_to(Path.cwd()) else argument
