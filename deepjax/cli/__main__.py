"""`deepjax NAME ...`, or `python -m deepjax.cli NAME ...`: runs the command of that name."""

import importlib
import sys
from collections.abc import Sequence

import deepjax
from deepjax.command_line import run_command
from deepjax.errors import unknown_name_error

GROUPS = {
    "training": {
        "train": "train one network on one data set",
        "runs": "list, show, watch, compare and verify training runs",
        "report": "write the HTML report of a run: curves, gradients, classes, worst images",
        "average": "average the weights of several checkpoints or runs",
    },
    "testing and use": {
        "evaluate": "test networks as their papers did, on every image of a set exactly once",
        "predict": "classify images, with names and probabilities",
        "export": "write a network for PyTorch, timm and StableHLO, with a model card",
    },
    "networks and data": {
        "models": "list the networks, or show one stage by stage",
        "data": "list and prepare public data sets, check your own images",
    },
    "other": {
        "study": "list and run the studies of a clone",
        "completion": "print a script by which bash or zsh completes commands and options",
    },
}
COMMANDS = {name: about for group in GROUPS.values() for name, about in group.items()}
USAGE = "\n".join(
    [
        "VGG, GoogLeNet and ResNet in JAX: training, evaluation and instruments.",
        "",
        "    deepjax train --model cifar_resnet20 --dataset digits --output-dir runs/resnet20",
        "    deepjax train --help          # the options of a command",
        *(
            line
            for title, group in GROUPS.items()
            for line in ("", title, *(f"  {name:12}{about}" for name, about in group.items()))
        ),
        "",
        "  --version   the version of deepjax",
    ]
)


def main() -> None:
    """The entry point `deepjax`."""
    run_command(lambda: start(sys.argv[1:]), resumes=sys.argv[1:2] == ["train"])


def start(arguments: Sequence[str]) -> None:
    """Run a command; raises InputError for an unknown one."""
    name, *rest = arguments or ["--help"]
    if name in ("--help", "-h"):
        print(USAGE)
    elif name == "--version":
        print(deepjax.__version__)
    elif name in COMMANDS:
        importlib.import_module(f"deepjax.cli.{name}").start(rest)
    else:
        raise unknown_name_error("command", name, list(COMMANDS), listed_by="deepjax --help")


if __name__ == "__main__":
    main()
