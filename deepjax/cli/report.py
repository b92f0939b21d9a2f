"""Write the report of a training run: curves, gradients, classes, worst images, options.

    deepjax report runs/resnet20                # writes runs/resnet20/report.html
    deepjax report runs/resnet20 --no-predict   # from the log alone, without the network

The report of a study, report.html in its directory, is written by the study.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from deepjax.backend.compilation_cache import enable_compilation_cache
from deepjax.command_line import parse
from deepjax.data import load_split
from deepjax.errors import InputError
from deepjax.evaluation.models import PreprocessingOverrides, from_run
from deepjax.evaluation.predict import predict
from deepjax.evaluation.protocols import resolve_protocol
from deepjax.evaluation.report.page import FIGURES, RunPredictions, write_run_report
from deepjax.help_page import HelpPage
from deepjax.progress import display
from deepjax.storage.url import path_or_url
from deepjax.training.checkpoint.run_copy import local_run, write_to_run
from deepjax.training.custom_network import import_network
from deepjax.training.distributed.sharding import Partitioner, make_mesh
from deepjax.training.run_directory.run_summary import RunSummary, summarize_run
from deepjax.training.run_directory.tested_data import require_not_trained_on


@dataclasses.dataclass(frozen=True)
class Options:
    """Write report.html of a training run into its directory."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The --output-dir folder of a training run."""
    predict: bool = True
    """Classify the test images, for errors by class and the worst images; --no-predict: only what
    the log has."""
    model: str = ""
    """package.module:Class of the network, where it is your own."""
    batch_size: int = 64
    """Images per step."""
    data_dir: str | None = None
    """Folder or URL of prepared data sets; default $TFDS_DATA_DIR or ~/tensorflow_datasets."""


def start(arguments: Sequence[str]) -> None:
    """Parse the options, classify the test images, write the page."""
    options = parse(Options, arguments, page=HelpPage(str(__doc__)))
    run = summarize_run(local_run(options.run, "run"))
    if not (run.epochs or options.predict):
        raise InputError(f"{options.run} has no epoch in its log yet; nothing to report")
    result = classify_test_images(run, options) if options.predict else None
    page = write_run_report(run, result)
    figures = [f"{FIGURES}/{path.name}" for path in (run.path / FIGURES).iterdir()]
    write_to_run(options.run, run.path, page.name, *figures)
    print(f"report in {path_or_url(options.run, 'run')}/{page.name}")


def classify_test_images(run: RunSummary, options: Options) -> RunPredictions:
    """The predictions of the newest checkpoint for the test images, with progress."""
    enable_compilation_cache()
    make = import_network(options.model) if options.model else None
    overrides = PreprocessingOverrides()
    member = from_run(run.path, None, overrides, options.data_dir, options.model, make)
    if member.trained_on is not None:
        require_not_trained_on(member.dataset, member.trained_on, options.data_dir)
    split = load_split(member.dataset, "test", options.data_dir)
    protocol = resolve_protocol("1-crop", member.name, member.crop, member.resize, (), None)
    title = f"test images of {member.dataset.name}"
    with display(title, {title: len(split)}, "image") as report:
        scores = predict(
            member, split, protocol, Partitioner(make_mesh()), options.batch_size,
            lambda done, total: report(title, done, total),
        )  # fmt: skip
    return RunPredictions(member, protocol, split, scores)
