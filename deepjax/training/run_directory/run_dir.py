"""Open a run directory: the network, its variables at a checkpoint, and batches of its data."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from deepjax.data import Dataset, dataset_info, sample
from deepjax.data.splits import SplitName
from deepjax.errors import require
from deepjax.training.checkpoint.inspect import read_state, steps_of
from deepjax.training.checkpoint.run_copy import local_run
from deepjax.training.config import TrainConfig
from deepjax.training.metrics.metrics_log import METRICS, read_rows
from deepjax.training.network import ModelFactory, model_from
from deepjax.training.run_directory.config_file import read_config
from deepjax.training.run_directory.data_identity import require_same_classes
from deepjax.training.run_directory.tested_data import (
    TrainedOn,
    data_of_training,
    require_not_trained_on,
    trained_on,
)


@dataclasses.dataclass(frozen=True, eq=False)
class OpenRun:
    """A checkpoint of a run for instruments: `trace(run.model, run.variables, run.batch())`."""

    path: Path
    step: int
    """Training steps before this checkpoint."""
    steps: tuple[int, ...]
    """Steps of all checkpoints of the run, oldest first."""
    config: TrainConfig
    model: nn.Module
    dataset: Dataset
    variables: dict[str, Any]
    """"params" and, where the network has some, "batch_stats"."""
    trained_on: TrainedOn
    data_dir: str | None = None

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of the run's metrics.jsonl, such as for `logged_sharpness`."""
        return read_rows(self.path / METRICS)

    def batch(self, size: int = 128, split: SplitName = "train", seed: int = 0) -> dict[str, Array]:
        """`size` random images of a split, normalised and resized but not augmented, and labels.

        Test images have the size of evaluation; training images have that of the step after this
        checkpoint (see `progressive_sizes`). Photographs are cut at the centre as in evaluation.
        Raises InputError for a size larger than the split, for a data set that is not prepared, and
        for test images that the network was trained on.
        """
        config = self.config
        if split == "test":
            require_not_trained_on(self.dataset, self.trained_on, self.data_dir)
        of_step = (
            config.shape_at(self.step)[0]
            if config.data.progressive_sizes
            else config.data.image_size
        )
        pixels = config.eval_resize if split == "test" else of_step
        return sample(self.dataset, size, seed, split, pixels, self.data_dir, config.data.eval_crop)


def open_run(
    path: Path | str,
    step: int | None = None,
    *,
    averaged: bool = False,
    data_dir: str | None = None,
    dataset: str = "",
    make: ModelFactory | None = None,
) -> OpenRun:
    """The network of a run at one of its checkpoints, default the newest, on the first device.

    `averaged`: the moving averages of a run with --ema-decay instead of the parameters. `dataset`:
    the data set of `batch`, of the same classes, such as a new path of the user's own images, which
    have the split of the training there; by default the run's, which need not be there before
    `batch`. `make`: see `compile_training`.

    Raises InputError for a directory that is no run, a step without a checkpoint (naming those
    there are), a corrupt checkpoint, and averages that the run does not keep.
    """
    path = local_run(path, "path")
    config = read_config(path)
    folder, state = read_state(path, step)
    require(
        bool(state["ema"]) or not averaged,
        "averaged",
        averaged,
        "False for a run without --ema-decay",
    )
    source = state["ema"] if averaged else state
    variables = {
        name: jax.tree.map(jnp.asarray, source[name])
        for name in ("params", "batch_stats")
        if source.get(name)
    }
    steps = tuple(steps_of(folder.parent))
    model, trained = model_from(config, make), trained_on(path, config)
    data = trained.dataset
    if dataset:
        other = dataset_info(dataset)
        other = data_of_training(other, [trained]) or other
        require_same_classes(other, data, str(path))
        shape = data.shape if other.encoded and data.encoded else other.shape
        data = dataclasses.replace(other, mean=data.mean, std=data.std, shape=shape)
    at = int(folder.name)
    return OpenRun(path, at, steps, config, model, data, variables, trained, data_dir)
