"""Average the weights of several checkpoints of a run, or of several runs.

    deepjax average runs/resnet --last 5 --output-dir runs/averaged     # checkpoints of one run
    deepjax average runs/tuned-* --output-dir runs/soup                 # the newest of several runs

The result is a directory for evaluate, predict, open_run and --weights; it is never resumed. Batch
statistics are computed again on training batches.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from deepjax.backend.compilation_cache import enable_compilation_cache
from deepjax.command_line import parse
from deepjax.help_page import HelpPage
from deepjax.progress import display
from deepjax.training.custom_network import import_network
from deepjax.training.run_directory.average import average_checkpoints

TITLE = "batch statistics"


@dataclasses.dataclass(frozen=True)
class Options:
    """Average the weights of several checkpoints of a run, or of several runs."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]
    """Run directories of `deepjax train`, of one network and data set, from the same initial
    weights."""
    output_dir: Path
    """A new directory for the result."""
    last: int = 0
    """Newest checkpoints of each run (training keeps --keep-last); default all of a single run, the
    newest of several."""
    ema: bool = True
    """Of runs that were trained with --ema-decay the averaged weights; --no-ema: the parameters."""
    batches: int = 0
    """Training batches for the batch statistics; 0: one pass over the training images of the first
    run, augmented as in its training."""
    data_dir: str | None = None
    """Folder or URL of prepared data sets; default $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    model: str = ""
    """package.module:Class of the runs' network, where it is your own."""


def start(arguments: Sequence[str]) -> None:
    """Parse the options, average, print."""
    options = parse(Options, arguments, page=HelpPage(str(__doc__)))
    enable_compilation_cache()
    with display(TITLE, {TITLE: options.batches or 1}, "batch") as report:
        found = average_checkpoints(
            options.runs,
            options.output_dir,
            last=options.last,
            ema=options.ema,
            batches=options.batches,
            data_dir=options.data_dir,
            make=import_network(options.model) if options.model else None,
            report=lambda done, total: report(TITLE, done, total),
        )
    print(f"{found.path}: {found.describe()}")
