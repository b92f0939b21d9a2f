"""The command that trains the network of a configuration."""

import shlex
from typing import Any

from deepjax.training.config import TrainConfig, options_of


def changed_options(config: TrainConfig) -> dict[str, Any]:
    """The network, the data set, and every option that is not a default, by name."""
    defaults = options_of(TrainConfig(config.model))
    found = {"model": config.model, "dataset": config.dataset}
    return found | {k: v for k, v in options_of(config).items() if v != defaults[k]}


def changed_flags(config: TrainConfig) -> list[list[str]]:
    """The options of `changed_options` as words of a command line.

    >>> changed_flags(TrainConfig("vgg11", seed=3))
    [['--model', 'vgg11'], ['--dataset', 'digits'], ['--seed', '3']]
    """
    options = changed_options(config)
    return [_words(name.replace("_", "-"), options[name]) for name in options]


def train_command(config: TrainConfig, output_dir: str) -> str:
    """`deepjax train` with the options of a configuration.

    >>> train_command(TrainConfig("vgg11", "digits", seed=3), "runs/vgg11")
    'deepjax train --model vgg11 --dataset digits --seed 3 --output-dir runs/vgg11'
    """
    words = [word for flag in changed_flags(config) for word in flag]
    return shlex.join(["deepjax", "train", *words, "--output-dir", output_dir])


def _words(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if str(value).startswith("-"):  # which looks like an option
        return [f"--{name}={value}"]
    return [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
