"""The command that trains the network of a configuration."""

import shlex
from typing import Any

from deepjax.training.config import TrainConfig, options_of


def changed_options(config: TrainConfig) -> dict[str, Any]:
    """The network, the data set, and every option that is not a default, by name."""
    defaults = options_of(TrainConfig(config.model))
    found = {"model": config.model, "dataset": config.dataset}
    return found | {k: v for k, v in options_of(config).items() if v != defaults[k]}


def train_command(config: TrainConfig, output_dir: str) -> str:
    """`deepjax train` with the options of a configuration.

    >>> train_command(TrainConfig("vgg11", "digits", seed=3), "runs/vgg11")
    'deepjax train --model vgg11 --dataset digits --seed 3 --output-dir runs/vgg11'
    """
    words = ["deepjax", "train"]
    for name, value in changed_options(config).items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            values = value if isinstance(value, tuple) else (value,)
            words += [f"--{flag}", *map(str, values)]
    return shlex.join([*words, "--output-dir", output_dir])
