"""Train one network on one data set.

    deepjax train --model cifar_resnet20 --dataset digits --epochs 10 --output-dir runs/resnet20

The same command resumes a stopped run, bitwise identical to one without interruption.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro

from deepjax.analysis.plots import save
from deepjax.backend.compilation_cache import enable_compilation_cache
from deepjax.command_line import parse
from deepjax.data.catalog import named_split, require_no_folder
from deepjax.errors import InputError
from deepjax.evaluation.report.figures import draw_curves
from deepjax.help_page import HelpPage
from deepjax.progress import display
from deepjax.storage.url import path_or_url
from deepjax.training import RunOptions, RunResult, TrainConfig, train
from deepjax.training.checkpoint.run_copy import local_run, write_to_run
from deepjax.training.config import is_import_path
from deepjax.training.custom_network import import_network
from deepjax.training.distributed.cluster import (
    Hosts,
    enable_deterministic_ops,
    initialize_distributed,
)
from deepjax.training.metrics.metrics_log import read_rows
from deepjax.training.metrics.profiler import PROFILE_FOLDER
from deepjax.training.recipes.imagenet import recipe, recipes_page
from deepjax.training.run_directory.run_result import DIGEST_CHARACTERS

USUAL_OPTIONS = {
    "model and data": {
        "--model": "a network of `deepjax models`, or package.module:Class of your own",
        "--dataset": "a name of `deepjax data list`, or the path of your own images",
        "--weights": "start from weights: a file, a repository or a run directory",
        "--recipe": "a preset for ImageNet; `--recipe list` shows all",
    },
    "optimisation": {
        "--epochs": "passes over the training images (default: 10)",
        "--batch-size": "images per step, over all devices (default: 128)",
        "--learning-rate": "the peak (default: 0.1)",
        "--optimizer": "sgd, lars, lamb, adamw, muon or rmsprop",
        "--schedule": "cosine, linear, root, step, exponential or constant",
        "--weight-decay": "L2 penalty (default: 0.0001)",
        "--seed": "of weights, order of data and augmentation (default: 0)",
    },
    "augmentation": {
        "--auto-augment": "none, rand or trivial",
        "--mixup": "alpha; --cutmix likewise (default: 0, off)",
        "--label-smoothing": "fraction of the target (default: 0)",
    },
    "speed and memory": {
        "--precision": "float32 or bfloat16",
        "--grad-accum-steps": "parts of a batch, one after the other (default: 1)",
        "--decode-threads": "workers that decode photographs (default: one a core)",
    },
    "output": {
        "--output-dir": "run directory; the same command resumes it",
        "--save-every": "steps between checkpoints (default: once an epoch)",
        "--tensorboard": "log every step to TensorBoard; --wandb: to Weights & Biases",
        "--probe-every": "steps between probes of the layers (default: 0, off)",
        "--profile": "A:B, the steps to trace with jax.profiler",
    },
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Train one model on one data set; the same command resumes a stopped run."""

    config: tyro.conf.OmitArgPrefixes[Annotated[TrainConfig, tyro.conf.arg(name="")]]
    output_dir: Path
    """Run directory: config.json, metrics.jsonl, checkpoints/, curves.png."""
    test_fraction: float | None = None
    """Your own images without a test split: part of each class for tests, default 0.2. The run
    notes it in the name of the data set, DATASET[test_fraction=0.1]."""
    split_seed: int | None = None
    """Seed by which these images are chosen, default 0."""
    recipe: str = ""
    """Preset that the other options override, e.g. resnet50_a3; `--recipe list` shows all."""
    run: Annotated[RunOptions, tyro.conf.arg(name="")] = RunOptions()
    hosts: Hosts = Hosts()
    deterministic: bool = False
    """Bitwise reproducible on a GPU too, at some cost in speed (on a CPU it always is)."""


def parsed(arguments: Sequence[str]) -> Options:
    """The options of a command line, with defaults from its recipe if it names one.

    Raises InputError for an unknown recipe or option.
    """
    name = recipe_of(arguments)
    start: Any = Options(recipe(name).config, tyro.MISSING, recipe=name) if name else None
    return parse(Options, arguments, start, HelpPage(str(__doc__), USUAL_OPTIONS))


def recipe_of(arguments: Sequence[str]) -> str:
    """The value of --recipe, or ""."""
    joined = [
        word
        for argument in arguments
        for word in (argument.split("=", 1) if argument.startswith("--recipe=") else [argument])
    ]
    return dict(pairwise(joined)).get("--recipe", "")


def main(options: Options) -> None:
    """Train, draw the curves, print the result."""
    config, out = options.config, path_or_url(options.output_dir, "output_dir")
    require_no_folder(config.dataset)
    chosen = (options.test_fraction, options.split_seed)
    config = dataclasses.replace(config, dataset=named_split(config.dataset, *chosen))
    if options.deterministic:
        enable_deterministic_ops()
    initialize_distributed(options.hosts)
    enable_compilation_cache()
    title = f"{config.model} on {config.dataset}"
    primary = jax.process_index() == 0
    with (
        display(title, {title: config.total_steps})
        if primary
        else contextlib.nullcontext(ignore_progress) as report
    ):
        make = import_network(config.model) if is_import_path(config.model) else None
        shown = functools.partial(report, title)
        result = train(config, out, options.run, report=shown, make=make)
    if primary:
        folder = local_run(out, "output_dir", checkpoints=False)
        draw(folder, title)
        write_to_run(out, folder, "curves.png")
        print(describe(result, out, folder))


def ignore_progress(task: str, done: int, total: int, note: str = "") -> None:
    """Progress of the other processes; process 0 shows it for all."""


def draw(out: Path, title: str) -> None:
    """Write curves.png from the metrics of the run; raises InputError when it cannot be written."""
    rows = [row for row in read_rows(out / "metrics.jsonl") if row["kind"] == "epoch"]
    figure = draw_curves(rows, title)
    try:
        save(figure, out / "curves.png")
    except OSError as error:
        raise InputError(
            f"cannot write {out / 'curves.png'}: {error.strerror}; "
            "free space, and run the same command again"
        ) from error


def describe(result: RunResult, out: Path | str, folder: Path) -> str:
    """The result of a run in two lines; the digest is that of its last checkpoint.

    folder: the run's, or its copy on this machine.
    """
    start = (
        "was done already"
        if result.was_done
        else f"resumed after step {result.resumed_at}"
        if result.resumed_at
        else "done"
    )
    saved = (
        f"; checkpoint {result.steps} has digest {result.digest[:DIGEST_CHARACTERS]}"
        if result.digest
        else ""
    )
    files = "config.json, metrics.jsonl, checkpoints/, curves.png"
    files += ", profile/" if (folder / PROFILE_FOLDER).exists() else ""
    return (
        f"{start}: {result.steps} steps; "
        f"train error {100 * result.train_error:.2f} % of {result.train_images} images, "
        f"test error {100 * result.test_error:.2f} % of {result.test_images} images\n"
        f"in {out}: {files}{saved}"
    )


def start(arguments: Sequence[str]) -> None:
    """The command: the list of recipes, or a training."""
    if recipe_of(arguments) == "list":
        print(recipes_page(), end="")
    else:
        main(parsed(arguments))
