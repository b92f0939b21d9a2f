"""One pure step, and the loop around it."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepjax.training.config import TrainConfig
    from deepjax.training.options import RunOptions
    from deepjax.training.programs import Programs, build
    from deepjax.training.run_directory import OpenRun, open_run
    from deepjax.training.trainer import RunResult, train

__all__ = ["OpenRun", "Programs", "RunOptions", "RunResult", "TrainConfig", "build", "open_run", "train"]

_HOMES = {"TrainConfig": "config", "RunOptions": "options", "Programs": "programs", "build": "programs"}
_HOMES |= {"OpenRun": "run_directory", "open_run": "run_directory"}


def __getattr__(name: str) -> Any:
    """Import on first use, so that `python -m deepjax.training.checkpoint` does not import itself twice."""
    if name not in __all__:
        raise AttributeError(f"module 'deepjax.training' has no attribute {name!r}")
    return getattr(importlib.import_module(f"deepjax.training.{_HOMES.get(name, 'trainer')}"), name)
