"""One pure step, and the loop around it."""

from deepjax.training.build import CompiledTraining, compile_training
from deepjax.training.config import TrainConfig, replace_options, train_config
from deepjax.training.config_groups import (
    AugmentationConfig,
    DataConfig,
    GuardConfig,
    ObjectiveConfig,
    OptimizationConfig,
)
from deepjax.training.loop import train
from deepjax.training.run_directory.run_dir import OpenRun, open_run
from deepjax.training.run_directory.run_result import RunResult
from deepjax.training.run_options import RunOptions

__all__ = [
    "AugmentationConfig",
    "CompiledTraining",
    "DataConfig",
    "GuardConfig",
    "ObjectiveConfig",
    "OpenRun",
    "OptimizationConfig",
    "RunOptions",
    "RunResult",
    "TrainConfig",
    "compile_training",
    "open_run",
    "replace_options",
    "train",
    "train_config",
]
