"""One pure step, and the loop around it."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepjax.training.config import TrainConfig
    from deepjax.training.trainer import Programs, RunResult, build, train

__all__ = ["Programs", "RunResult", "TrainConfig", "build", "train"]


def __getattr__(name: str) -> Any:
    """Import on first use, so that `python -m deepjax.training.checkpoint` does not import itself twice."""
    if name not in __all__:
        raise AttributeError(f"module 'deepjax.training' has no attribute {name!r}")
    return getattr(importlib.import_module(f"deepjax.training.{'config' if name == 'TrainConfig' else 'trainer'}"), name)
