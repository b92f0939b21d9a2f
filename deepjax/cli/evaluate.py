"""Test networks by their papers' protocols, on every image of a data set exactly once.

    deepjax evaluate resnet50 --weights timm/resnet50.a1_in1k
    deepjax evaluate vgg16 --weights vgg16.safetensors --protocol multi-scale --also imagenet_v2
    deepjax evaluate --weights resnet50=a.safetensors resnet101=b.safetensors   # an ensemble
    deepjax evaluate --run runs/resnet50                                        # a training run
    deepjax evaluate --models 'resnet*' --output-dir runs/resnets               # a table

Published results are printed with the measured ones; result.json has both.
"""

import contextlib
import dataclasses
import functools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deepjax.backend.compilation_cache import enable_compilation_cache
from deepjax.cli.evaluate_options import (
    USUAL_OPTIONS,
    Options,
    choose_tested_data,
    open_test_split,
    protocol_for,
)
from deepjax.cli.evaluate_table import evaluate_table
from deepjax.command_line import json_output, parse
from deepjax.data import Dataset, Split, dataset_info
from deepjax.data.catalog import require_no_folder
from deepjax.data.encoded_split import EncodedSplit
from deepjax.data.label_names import label_names
from deepjax.errors import InputError, require
from deepjax.evaluation.agreement import compare_with_final_row, evaluation_differences, final_row
from deepjax.evaluation.class_errors import (
    ClassErrors,
    class_errors,
    class_errors_row,
    format_class_errors,
)
from deepjax.evaluation.images import read_labels
from deepjax.evaluation.metrics import (
    ClassificationMetrics,
    compute_metrics,
    format_metrics,
    metrics_row,
)
from deepjax.evaluation.models import from_run, from_weights
from deepjax.evaluation.paper_results import find_paper_results
from deepjax.evaluation.predict import EvalModel, ensemble, predict
from deepjax.evaluation.result_file import (
    RESULT_FILE,
    check_result_folder,
    evaluation_spec,
    result_text,
    set_spec,
)
from deepjax.help_page import HelpPage
from deepjax.io import write_text
from deepjax.paths import user_path
from deepjax.progress import display, say_on_stderr
from deepjax.provenance import provenance
from deepjax.training.checkpoint.run_copy import local_run
from deepjax.training.custom_network import import_network
from deepjax.training.distributed.cluster import initialize_distributed
from deepjax.training.distributed.collectives import on_primary
from deepjax.training.distributed.sharding import Partitioner, make_mesh
from deepjax.training.run_directory.config_file import AVERAGE_FILE
from deepjax.training.run_directory.run_lock import hold


def start(arguments: Sequence[str]) -> None:
    """Parse the options and evaluate."""
    options = parse(Options, arguments, page=HelpPage(str(__doc__), USUAL_OPTIONS))
    with json_output(options.json) as show:
        main(options, show)


def main(options: Options, show: Callable[[Any], None] = lambda result: None) -> None:
    """Predict, score, print, write. show: is given the result for --json."""
    began = time.monotonic()
    options = dataclasses.replace(
        options, run=tuple(local_run(path, "run") for path in options.run)
    )
    for name in (options.dataset, *options.also):
        require_no_folder(name)
    initialize_distributed(options.hosts)
    enable_compilation_cache()
    if options.models:
        evaluate_table(options, show)
        return
    members = load_members(options)
    names = tuple(dict.fromkeys((options.dataset or members[0].dataset.name, *options.also)))
    networks = [member.trained_on for member in members if member.trained_on]
    datasets = [choose_tested_data(name, networks) for name in names]
    # All data sets are opened before hours of work.
    tests = [(dataset, open_test_split(dataset, members, options)) for dataset in datasets]
    about = evaluation_spec(
        members, [protocol_for(member, options) for member in members], options.overrides.precision
    )
    out = user_path(options.output_dir or default_output_dir(members, options), "output_dir")
    data = [set_spec(dataset.name, split) for dataset, split in tests]
    with hold(out, say_on_stderr):
        on_primary(lambda: check_result_folder(out, about, data))
        predict_and_write(members, tests, about, out, options, began, show)


def predict_and_write(
    members: list[EvalModel],
    tests: Sequence[tuple[Dataset, Split | EncodedSplit]],
    about: list[dict[str, Any]],
    out: Path,
    options: Options,
    began: float,
    show: Callable[[Any], None],
) -> None:
    """Predict, score and print every data set; write result.json."""
    for member in members:
        if member.assumed and jax.process_index() == 0:
            print(f"{member.source}: {member.assumed}")
    rows, agreement = [], lambda: None
    for dataset, split in tests:
        title = f"{dataset.name}, {options.protocol}"
        scores = predict_with_progress(members, split, title, options)
        if jax.process_index() == 0:
            labels = read_labels(split)
            found = compute_metrics(scores, labels, dataset)
            names = label_names(dataset, options.data_dir)
            by_class = class_errors(scores, labels, dataset, names)
            row = report_metrics(found, by_class, members, options)
            rows.append(set_spec(dataset.name, split) | row)
            if options.run and _is_of_training(dataset, split, members[0]):
                agreement = functools.partial(
                    check_final_row, found, scores, labels, split, members, options
                )
    if jax.process_index() == 0:
        hardware = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
        result = {"evaluation": about, "sets": rows} | provenance(
            time.monotonic() - began, hardware
        )
        write_text(out / RESULT_FILE, result_text(result))
        sources = " + ".join(f"{member.name} ({member.source})" for member in members)
        print(f"{out / RESULT_FILE}: {sources}")
        show(json.loads(result_text(result)))
    on_primary(agreement)  # last, so that a result that does not agree is written too


def _is_of_training(dataset: Dataset, split: Split | EncodedSplit, member: EvalModel) -> bool:
    """Whether a test split is that of a run, whose data may have moved."""
    known = member.trained_on.fingerprint if member.trained_on else ""
    moved = bool(dataset.path) and split.fingerprint == known
    return moved or dataset.name == member.dataset.name


def load_members(options: Options) -> list[EvalModel]:
    """The networks to test: runs and exported folders for their classes, weights for ImageNet's."""
    of_runs = dataset_info(options.dataset) if options.dataset else None
    make = import_network(options.model) if options.model else None
    overrides = options.overrides
    # With runs and weights --known is of the weights.
    for_runs = dataclasses.replace(overrides, known="") if options.weights else overrides
    members = [
        from_run(path, of_runs, for_runs, options.data_dir, options.model, make, options.ema)
        for path in options.run
    ]
    trained_on = sorted({member.dataset.name for member in members})
    require(
        len(trained_on) < 2 or bool(options.dataset),
        "dataset",
        options.dataset,
        f"one of {', '.join(trained_on)}, of the runs",
    )
    dataset = of_runs or (_default_dataset(members[0]) if members else None)
    name = options.name or options.model
    for given in options.weights:
        members.append(from_weights(given, name, dataset, overrides, options.entry, make))
        dataset = dataset or dataset_info(members[0].dataset.name)
    if not members:
        raise InputError(
            "nothing is given to test; allowed: --weights SOURCE after the NAME of a network, "
            "--run DIRECTORY, or --models PATTERN"
        )
    return members


def _default_dataset(member: EvalModel) -> Dataset:
    """The data set of a run, which describes the user's own data."""
    trained = member.trained_on
    if trained is not None and trained.dataset.path:
        return trained.dataset
    return dataset_info(member.dataset.name)


def predict_with_progress(
    members: list[EvalModel], split: Split | EncodedSplit, title: str, options: Options
) -> np.ndarray:
    """Log-probabilities of every image of a data set, of the mean probability of an ensemble."""
    partitioner = Partitioner(make_mesh())
    protocols = [protocol_for(member, options) for member in members]
    tasks = {f"{i + 1}. {member.name}": member for i, member in enumerate(members)}
    totals = {
        task: len(split) * (len(of.sides) if of.dense else 1)
        for task, of in zip(tasks, protocols, strict=True)
    }
    shown = display(title, totals, "image")
    predictions = []
    with shown if jax.process_index() == 0 else contextlib.nullcontext(lambda *_: None) as report:
        for (task, member), protocol in zip(tasks.items(), protocols, strict=True):
            predictions.append(
                predict(
                    member,
                    split,
                    protocol,
                    partitioner,
                    options.batch_size,
                    functools.partial(report, task),
                )
            )
    return ensemble(predictions)


def report_metrics(
    found: ClassificationMetrics,
    by_class: ClassErrors | None,
    members: list[EvalModel],
    options: Options,
) -> dict[str, Any]:
    """Print the metrics of a data set and the published results; returns the row of result.json."""
    # Papers give results of single networks on ImageNet.
    alone = len(members) == 1 and found.dataset == "imagenet2012"
    papers = find_paper_results(members[0].name, options.protocol) if alone else []
    worst = [] if by_class is None else format_class_errors(by_class)
    print("\n".join([*format_metrics(found, papers), *worst]))
    published = {"published": [dataclasses.asdict(each) for each in papers]}
    return metrics_row(found) | published | class_errors_row(by_class)


def check_final_row(
    found: ClassificationMetrics,
    scores: np.ndarray,
    labels: np.ndarray,
    split: Split | EncodedSplit,
    members: list[EvalModel],
    options: Options,
) -> None:
    """Print whether a run's test metrics equal those of its final row.

    Raises InputError where they differ and nothing explains the difference.
    """
    path, member = options.run[0], members[0]
    final = final_row(path)
    if len(members) > 1 or final is None:
        averaged = (path / AVERAGE_FILE).exists()
        unfinished = "it is an average of checkpoints" if averaged else "its training has not ended"
        reason = "an ensemble" if len(members) > 1 else unfinished
        print(f"not compared with the final row of {path}: {reason}")
        return
    precision = options.overrides.precision
    different = evaluation_differences(
        path, final, member, protocol_for(member, options), precision, split
    )
    print(compare_with_final_row(path, final, found, scores, labels, different))


def default_output_dir(members: list[EvalModel], options: Options) -> Path:
    """The folder named after networks and protocol."""
    names = "-".join(dict.fromkeys(member.name for member in members)).replace("/", "-")
    return Path("runs") / f"evaluation-{names}-{options.protocol}"
