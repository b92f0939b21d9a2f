"""The settings of JAX and XLA that change the bits of a run: stored, and compared on resume."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from deepjax.errors import InputError
from deepjax.io import write_text
from deepjax.training.run_directory.config_file import RESULT_FILES

NAME = "numerics.json"
# Settings that change the bits of a run, with JAX's defaults, which runs without this file have.
# Settings that only refuse programs, such as jax_numpy_dtype_promotion=strict, change no bit.
DEFAULTS: dict[str, Any] = {
    "jax_default_matmul_precision": None,
    "jax_default_prng_impl": "threefry2x32",
    "jax_enable_x64": False,
    "jax_random_seed_offset": 0,
    "jax_softmax_custom_jvp": False,
    "jax_threefry_partitionable": True,
}
# Not compared in runs that lack them.
XLA_FLAGS = (
    "xla_allow_excess_precision",
    "xla_cpu_enable_fast_math",
    "xla_gpu_deterministic_ops",
    "xla_gpu_exclude_nondeterministic_ops",
)


def numerics(environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """The settings of this process by name; of XLA as in XLA_FLAGS, or "" if not named there."""
    settings = {name: getattr(jax.config, name, default) for name, default in DEFAULTS.items()}
    return settings | {name: _flag(name, environment.get("XLA_FLAGS", "")) for name in XLA_FLAGS}


def _flag(name: str, given: str) -> str:
    """The last value of a flag; true if it has no value."""
    values = re.findall(rf"--{name}(=\S*)?(?!\S)", given)
    if not values:
        return ""
    value: str = values[-1].lstrip("=")
    return {"": "true", "1": "true", "0": "false"}.get(value) or value


def claim_numerics(out: Path) -> None:
    """Store this process's settings in a new run (or study) directory, or compare them.

    Call it before config.json is written: a directory with that file alone is of an older run, with
    JAX's defaults. Raises InputError that names each setting that differs.
    """
    path = out / NAME
    if path.exists() or (out / "config.json").exists():
        _compare(path, numerics())
    elif not any((out / name).exists() for name in RESULT_FILES):
        # `init_run_dir` refuses results without a configuration.
        write_text(path, json.dumps(numerics(), indent=2) + "\n")


def _compare(path: Path, mine: dict[str, Any]) -> None:
    try:
        stored = DEFAULTS | (json.loads(path.read_text()) if path.exists() else {})
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path} cannot be read as settings ({type(error).__name__}); "
            "choose another --output-dir"
        ) from error
    changed = [
        f"{name} is {mine[name]!r}, there {stored[name]!r}"
        for name in mine
        if name in stored and mine[name] != stored[name]
    ]
    if changed:
        raise InputError(
            f"{path.parent} holds a run with other settings of JAX: {'; '.join(changed)}; "
            "set them as they were (JAX_... and XLA_FLAGS in the environment, --deterministic), "
            "or choose another --output-dir"
        )
