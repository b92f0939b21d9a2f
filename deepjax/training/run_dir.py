"""Opens a run directory for instruments: network, variables of a checkpoint, and batches."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from deepjax.data import Dataset, dataset_info, sample
from deepjax.data.splits import SplitName
from deepjax.errors import InputError, require
from deepjax.paths import run_directory
from deepjax.training.build import ModelFactory, model_from
from deepjax.training.checkpoint.inspect import read_state, steps_of
from deepjax.training.config import TrainConfig


@dataclasses.dataclass(frozen=True, eq=False)
class OpenRun:
    """A checkpoint of a run: `trace(run.model, run.variables, run.batch())`."""

    path: Path
    step: int
    """Training steps of the variables."""
    steps: tuple[int, ...]
    """Of all checkpoints that the run keeps, oldest first."""
    config: TrainConfig
    model: nn.Module
    dataset: Dataset
    variables: dict[str, Any]
    """"params" and, where the network keeps some, "batch_stats"."""
    data_dir: str | None = None

    def batch(self, size: int = 128, split: SplitName = "train", seed: int = 0) -> dict[str, Array]:
        """`size` images and labels of a split: sampled without replacement, not augmented.

        Images are normalised and resized: test images to the size of evaluation (`eval_size`),
        training images to that of the next step (see `progressive_sizes`). Images of encoded splits
        are centre crops, as in evaluation (`eval_crop`). Raises InputError if the split has
        fewer images, or the data set is not prepared.
        """
        config = self.config
        of_step = config.shape_at(self.step)[0] if config.progressive_sizes else config.image_size
        pixels = config.eval_resize if split == "test" else of_step
        return sample(self.dataset, size, seed, split, pixels, self.data_dir, config.eval_crop)


def open_run(
    path: Path | str,
    step: int | None = None,
    *,
    averaged: bool = False,
    data_dir: str | None = None,
    make: ModelFactory | None = None,
) -> OpenRun:
    """Open a run at one of its checkpoints, default the newest, on the first device.

    `averaged`: the moving averages of a run with --ema-decay in place of the parameters. `make`: as
    for `compile_training`. Raises InputError for a folder that is not a run, a step without a
    checkpoint (listing the steps), a corrupt checkpoint, and averages that the run does not keep.
    """
    path = run_directory(path, "path")
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
    model, dataset = model_from(config, make), dataset_info(config.dataset)
    return OpenRun(path, int(folder.name), steps, config, model, dataset, variables, data_dir)


def read_config(path: Path) -> TrainConfig:
    """The configuration of a training run; fields that it lacks have their defaults."""
    try:
        stored: dict[str, Any] = json.loads((path / "config.json").read_text())
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in stored.items()
        }
        return TrainConfig(**fields)
    except OSError as error:
        raise InputError(
            f"{path} holds no config.json ({error.strerror}); "
            "allowed: the --output-dir folder of a training run"
        ) from error
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path / 'config.json'} is not of a training run ({type(error).__name__}: {error})"
        ) from error
