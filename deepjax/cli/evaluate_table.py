"""`deepjax evaluate --models PATTERN`: a table of many networks, completed by the next start."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deepjax.analysis import count_macs
from deepjax.cli.evaluate_options import (
    Options,
    choose_tested_data,
    open_test_split,
    protocol_for,
)
from deepjax.data import Dataset, Split
from deepjax.data.encoded_split import EncodedSplit
from deepjax.errors import InputError, describe_error
from deepjax.evaluation.candidates import Candidate, find_candidates
from deepjax.evaluation.images import read_labels
from deepjax.evaluation.metrics import compute_metrics, metrics_row
from deepjax.evaluation.model_table import (
    TABLE_FILES,
    ImageRate,
    TableRow,
    format_row,
    open_table,
    write_table,
)
from deepjax.evaluation.models import from_run, from_weights
from deepjax.evaluation.predict import EvalModel, predict
from deepjax.paths import user_path
from deepjax.progress import display, format_duration, say_on_stderr
from deepjax.provenance import provenance
from deepjax.training.custom_network import import_network
from deepjax.training.distributed.sharding import Partitioner, make_mesh
from deepjax.training.run_directory.config_file import read_config
from deepjax.training.run_directory.data_identity import require_same_classes
from deepjax.training.run_directory.run_lock import hold
from deepjax.training.run_directory.tested_data import require_not_trained_on, trained_on


def evaluate_table(options: Options, show: Callable[[Any], None] = lambda table: None) -> None:
    """Evaluate what the patterns match and the table lacks; write the table after each network.

    Raises InputError, after all others are done, where networks failed; the next start tries them
    again.
    """
    if jax.process_count() > 1:
        raise InputError(
            f"--models is for one process, here are {jax.process_count()}; start each alone, with "
            "patterns and an --output-dir of its own"
        )
    candidates = find_candidates(options.models, options.weights_dir)
    readable = [each for each in candidates if not each.error]
    if not readable:
        raise InputError(candidates[0].error)
    runs = [Path(each.source) for each in readable if each.is_run]
    networks = [trained_on(path, read_config(path)) for path in runs]
    default = networks[0].dataset.name if networks else "imagenet2012"
    dataset = choose_tested_data(options.dataset or default, networks)
    split = open_test_split(dataset, [], options)
    about = _about(dataset, split, options)
    named = f"table-{dataset.name.replace('/', '-')}-{options.protocol}"
    out = user_path(options.output_dir or Path("runs") / named, "output_dir")
    with hold(out, say_on_stderr):
        rows = _complete(out, about, candidates, dataset, split, options)
    show(json.loads((out / TABLE_FILES[0]).read_text()))
    print(f"{out}: {', '.join(TABLE_FILES)}; results: {sum(not row.error for row in rows)}")
    given = {each.key for each in candidates}
    failed = [row.model for row in rows if row.error and row.key in given]
    if failed:
        raise InputError(
            f"{len(failed)} of {len(given)} networks failed ({', '.join(failed)}), see "
            f"{out / TABLE_FILES[2]}; the same command tries them again"
        )


def _complete(
    out: Path,
    about: Mapping[str, Any],
    candidates: list[Candidate],
    dataset: Dataset,
    split: Split | EncodedSplit,
    options: Options,
) -> list[TableRow]:
    """Evaluate the networks without a result; all rows of the table."""
    began, labels = time.monotonic(), read_labels(split)
    rows = {row.key: row for row in open_table(out, about)}
    todo = [each for each in candidates if each.key not in rows or rows[each.key].error]
    if rows:  # an earlier start may have been killed between the files
        write_table(out, about, list(rows.values()), provenance(0.0, _hardware()))
    print(f"{len(candidates)} networks on {dataset.name}; {len(candidates) - len(todo)} are done")
    for number, candidate in enumerate(todo, 1):
        title = f"{number} of {len(todo)}: {candidate.model}"
        row = _evaluated(candidate, title, dataset, split, labels, options)
        # What could not be read, and was replaced, has another revision now.
        source = candidate.source
        rows = {key: old for key, old in rows.items() if not (old.error and old.weights == source)}
        rows[candidate.key] = row
        seconds = time.monotonic() - began
        write_table(out, about, list(rows.values()), provenance(seconds, _hardware()))
        left = seconds / number * (len(todo) - number)
        print(format_row(row) + (f"; about {format_duration(left)} left" if left else ""))
    return list(rows.values())


def _evaluated(
    candidate: Candidate,
    title: str,
    dataset: Dataset,
    split: Split | EncodedSplit,
    labels: np.ndarray,
    options: Options,
) -> TableRow:
    """The row of a network; with its error where it fails, of whatever kind that is."""
    if candidate.error:
        return TableRow(*candidate.key, error=candidate.error)
    try:
        member = _load(candidate, dataset, options)
        return _measured(candidate, member, title, dataset, split, labels, options)
    except InputError as error:
        return TableRow(*candidate.key, error=" ".join(str(error).split()))
    except Exception as error:  # out of memory, no network, a file cut short: the others go ahead
        return TableRow(*candidate.key, error=describe_error(error))


def _load(candidate: Candidate, dataset: Dataset, options: Options) -> EvalModel:
    """The network, whose classes are those of the data set."""
    if not candidate.is_run:
        return from_weights(candidate.source, candidate.model, dataset, options.overrides)
    own = options.model if options.model == candidate.model else ""
    make = import_network(own) if own else None
    member = from_run(
        Path(candidate.source),
        dataset,
        options.overrides,
        options.data_dir,
        own,
        make,
        options.ema,
    )
    require_same_classes(dataset, member.dataset, member.name)
    if member.trained_on is not None:
        require_not_trained_on(dataset, member.trained_on, options.data_dir)
    return member


def _measured(
    candidate: Candidate,
    member: EvalModel,
    title: str,
    dataset: Dataset,
    split: Split | EncodedSplit,
    labels: np.ndarray,
    options: Options,
) -> TableRow:
    """The metrics, speed and cost of a network."""
    protocol, rate = protocol_for(member, options), ImageRate()
    views = len(split) * (len(protocol.sides) if protocol.dense else 1)
    with display(title, {title: views}, "image") as show:

        def report(done: int, total: int) -> None:
            rate.update(done)
            show(title, done, total)

        where = Partitioner(make_mesh())
        scores = predict(member, split, protocol, where, options.batch_size, report)
    # A dense protocol compiles a program for every shape, in between.
    speed = None if protocol.dense else rate.images_per_second(len(split))
    height, width = member.stored or (member.crop, member.crop)
    shape = (height, width, dataset.shape[2])
    return TableRow(
        *candidate.key,
        metrics=metrics_row(compute_metrics(scores, labels, dataset)),
        images_per_second=speed,
        params=sum(np.size(leaf) for leaf in jax.tree.leaves(member.variables["params"])),
        macs=count_macs(member.model, shape),
        crop=str(height) if height == width else f"{height} x {width}",
        resize=protocol.sides[0] if len(protocol.sides) == 1 and dataset.encoded else 0,
        interpolation=member.interpolation,
        ema=member.averaged,
        assumed=member.assumed,
        batch_size=options.batch_size,
        hardware=_hardware(),
    )


def _about(dataset: Dataset, split: Split | EncodedSplit, options: Options) -> dict[str, Any]:
    """What distinguishes the table from that of another evaluation."""
    return {
        "dataset": dataset.name,
        "images": len(split),
        "fingerprint": split.fingerprint,
        "test split": [dataset.test_split, dataset.test_fraction, dataset.split_seed],
        "protocol": options.protocol,
        "sides": list(options.sides),
        "average": options.average or "",
        "ema": options.ema,
    } | vars(options.overrides)


def _hardware() -> str:
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"
