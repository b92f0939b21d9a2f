"""The mean of the weights of several checkpoints or runs, as a run directory of its own.

Of the last checkpoints of a run (stochastic weight averaging, Izmailov et al. 2018,
arXiv:1803.05407) or of runs from one start (model soups, Wortsman et al. 2022, arXiv:2203.05482).
Batch statistics are not averaged, since those of the mean weights are others: they are computed
again on training batches.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deepjax.data import train_batches
from deepjax.errors import InputError, describe_error, require
from deepjax.io import write_text
from deepjax.paths import AnyPath, run_directory
from deepjax.progress import say_on_stderr
from deepjax.training.build import (
    ModelFactory,
    crop_policy_from,
    model_from,
    open_split,
)
from deepjax.training.checkpoint.inspect import read_state, steps_of, structure
from deepjax.training.checkpoint.manager import Checkpoints
from deepjax.training.config import TrainConfig, options_of
from deepjax.training.run_directory.batch_statistics import batch_statistics
from deepjax.training.run_directory.config_file import AVERAGE_FILE, read_config
from deepjax.training.run_directory.data_identity import (
    DESCRIPTION,
    pin_dataset,
    read_description,
    run_dataset,
)
from deepjax.training.run_directory.data_identity import NAME as FINGERPRINT
from deepjax.training.run_directory.weights_identity import read_identity
from deepjax.training.run_options import RunOptions
from deepjax.training.step.state import TrainState

SAME = (  # options that averaged runs have in common: the network, and its images
    *("model", "model_args", "width", "drop_path", "dataset", "precision", "bn_scope"),
    *("freeze_batch_norm", "image_size", "progressive_sizes", "eval_size", "eval_crop"),
)
Report = Callable[[int, int], None]  # (batches done, batches in all)
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Averaged:
    """What was averaged: (run, step) of each checkpoint; batches and images of the statistics."""

    path: Path
    checkpoints: tuple[tuple[str, int], ...]
    weights: str
    """"averages" of --ema-decay, or "parameters"."""
    batches: int
    images: int

    def describe(self) -> str:
        """The weights in words.

        >>> Averaged(Path("soup"), (("a", 8), ("b", 8)), "parameters", 0, 0).describe()
        'the mean of the parameters of a step 8, b step 8'
        """
        of = ", ".join(f"{path} step {step}" for path, step in self.checkpoints)
        images = f"{self.images:,} training images in {self.batches:,} batches"
        statistics = f"; batch statistics of {images}" if self.batches else ""
        return f"the mean of the {self.weights} of {of}{statistics}"


def read_average(run: Path) -> Averaged | None:
    """What was averaged in a run directory; None for one that was trained.

    Raises InputError for a file that is corrupt.
    """
    path = run / AVERAGE_FILE
    if not path.exists():
        return None
    try:
        mark = json.loads(path.read_text())
        statistics = mark["batch_statistics"]
        return Averaged(
            run,
            tuple((each["run"], each["step"]) for each in mark["checkpoints"]),
            mark["weights"],
            int(statistics["batches"]),
            int(statistics["images"]),
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} cannot be read ({describe_error(error)})") from error


def average_checkpoints(
    runs: Sequence[AnyPath],
    out: AnyPath,
    *,
    last: int = 0,
    ema: bool = True,
    batches: int = 0,
    data_dir: str | None = None,
    make: ModelFactory | None = None,
    report: Report = lambda done, total: None,
    say: Say = say_on_stderr,
) -> Averaged:
    """Write the mean of checkpoints to a new run directory, which is read but never resumed.

    last: newest checkpoints of each run; 0: all that a single run keeps, the newest of several.
    ema: averages of runs with --ema-decay, not their parameters. batches: training batches for the
    batch statistics, preprocessed as in the training of the first run; 0: one pass over its
    training images. make: as in `open_run`. Raises InputError for an `out` that is not empty, runs
    of other networks or data, and for fewer checkpoints than `last`.
    """
    paths, target = [run_directory(run, "run") for run in runs], run_directory(out, "output_dir")
    require(bool(paths), "runs", list(runs), "one run or more")
    require(last >= 0, "last", last, "0 or more")
    require(batches >= 0, "batches", batches, "0 (one pass) or more")
    empty = not target.exists() or (target.is_dir() and not any(target.iterdir()))
    require(empty, "output_dir", str(target), "a folder that is new or empty")
    configs = [read_config(path) for path in paths]
    _require_one_network(paths, configs)
    if len({_start(path, config) for path, config in zip(paths, configs, strict=True)}) > 1:
        say(
            "warning: the runs began with different initial weights (other --weights, or another "
            "--seed where these do not set every layer); the mean of such networks is usually no "
            "better than chance"
        )
    averaged = ema and configs[0].ema_decay > 0
    chosen = [(path, step) for path in paths for step in _steps(path, last, len(paths))]
    variables, tree = _mean(chosen, averaged, configs[0].transfer.freeze_batch_norm)
    config = dataclasses.replace(configs[0], ema_decay=0.0)
    model, dataset = model_from(config, make), run_dataset(paths[0], config)
    count, images = 0, 0
    if variables["batch_stats"] and not config.transfer.freeze_batch_norm:
        split = open_split(config, RunOptions(data_dir=data_dir), "train")
        if (paths[0] / FINGERPRINT).exists():
            pin_dataset(paths[0], split, dataset)
        size = config.batch_size // config.grad_accum_steps
        count = batches or len(split) // size
        images = count * size
        pixels = config.input_shape[0]
        source = train_batches(
            split,
            size,
            config.seed,
            count,
            crops=crop_policy_from(config),
            size_at=lambda step: pixels,
        )
        stats = batch_statistics(
            config,
            model,
            dataset,
            variables["params"],
            source,
            lambda done: report(done, count),
        )
        variables["batch_stats"] = _cast(stats, variables["batch_stats"])
    found = Averaged(
        target,
        tuple((str(path), step) for path, step in chosen),
        "averages" if averaged else "parameters",
        count,
        images,
    )
    _write(found, paths[0], config, variables, tree)
    return found


def _require_one_network(paths: Sequence[Path], configs: Sequence[TrainConfig]) -> None:
    """Raise InputError, naming an option, unless runs have one network and one data set."""
    network = [
        {name: options_of(config)[name] for name in SAME} | {"averages": config.ema_decay > 0}
        for config in configs
    ]
    described = [read_description(path) for path in paths]
    for path, mine, data in zip(paths, network, described, strict=True):
        changed = [
            f"{name} is {value!r}, there {network[0][name]!r}"
            for name, value in mine.items()
            if value != network[0][name]
        ]
        if data != described[0]:
            changed.append(f"{DESCRIPTION} describes other data")
        if changed:
            raise InputError(f"{path} cannot be averaged with {paths[0]}: {'; '.join(changed)}")


def _start(path: Path, config: TrainConfig) -> tuple[str, int | None]:
    """The weights that a run began with, and the seed of the layers that they do not set."""
    if not config.transfer.weights:
        return "", config.seed
    found = read_identity(path)
    identity = {name: found[name] for name in found if name not in ("source", "new")}
    same = json.dumps(identity, sort_keys=True) if identity else config.transfer.weights
    return same, None if found.get("new") == [] else config.seed


def _steps(path: Path, last: int, runs: int) -> list[int]:
    """The steps of a run that are averaged."""
    kept = steps_of(path / "checkpoints")
    if not kept:
        raise InputError(
            f"{path} holds no checkpoint; allowed: the --output-dir folder of a training run"
        )
    allowed = f"0 to {len(kept)}, the checkpoints that {path} keeps (see --keep-last of training)"
    require(last <= len(kept), "last", last, allowed)
    return kept[-last:] if last else kept if runs == 1 else kept[-1:]


def _mean(
    chosen: Sequence[tuple[Path, int]], averaged: bool, frozen: bool
) -> tuple[dict[str, Any], Any]:
    """The mean parameters with the first batch statistics, and the tree of the last checkpoint.

    frozen: the batch statistics are equal in all of them; raises InputError where they are not.
    """
    (path, step), *others = chosen
    tree = read_state(path, step)[1]
    first = _variables(tree, averaged)
    sums = jax.tree.map(_wide, first["params"])
    for path, step in others:
        tree = read_state(path, step)[1]
        other = _variables(tree, averaged)
        if structure(other) != structure(first):
            raise InputError(f"the network of {path}, step {step}, has other parameters")
        equal = jax.tree.map(np.array_equal, other["batch_stats"], first["batch_stats"])
        if frozen and not all(jax.tree.leaves(equal)):
            raise InputError(
                f"{path}, step {step}, has other batch statistics than the others, and they are "
                "frozen (--freeze-batch-norm): they cannot be averaged"
            )
        sums = jax.tree.map(lambda total, leaf: total + _wide(leaf), sums, other["params"])
    mean = jax.tree.map(lambda leaf: leaf / len(chosen), sums)
    return first | {"params": _cast(mean, first["params"])}, tree


def _variables(tree: Any, averaged: bool) -> dict[str, Any]:
    source = tree["ema"] if averaged else tree
    return {name: source.get(name) or {} for name in ("params", "batch_stats")}


def _wide(leaf: Any) -> np.ndarray:
    leaf = np.asarray(leaf)
    return leaf.astype(np.complex128 if np.iscomplexobj(leaf) else np.float64)


def _cast(tree: Any, like: Any) -> Any:
    return jax.tree.map(lambda leaf, of: np.asarray(leaf).astype(of.dtype), tree, like)


def _write(
    found: Averaged, run: Path, config: TrainConfig, variables: dict[str, Any], tree: Any
) -> None:
    """The run directory: its mark first, so that no training takes it for one of its own."""
    mark = {
        "checkpoints": [{"run": path, "step": step} for path, step in found.checkpoints],
        "weights": found.weights,
        "batch_statistics": {"batches": found.batches, "images": found.images},
    }
    write_text(found.path / AVERAGE_FILE, json.dumps(mark, indent=2, ensure_ascii=False) + "\n")
    for name in (DESCRIPTION, FINGERPRINT):
        if (run / name).exists():
            shutil.copyfile(run / name, found.path / name)
    text = json.dumps(dataclasses.asdict(config), indent=2) + "\n"
    write_text(found.path / "config.json", text)
    state = TrainState(
        step=jnp.asarray(tree["step"]),
        params=jax.tree.map(jnp.asarray, variables["params"]),
        batch_stats=jax.tree.map(jnp.asarray, variables["batch_stats"]),
        opt_state={},
        key=jax.random.wrap_key_data(jnp.asarray(tree["key"])),
        learning_rate=jnp.asarray(tree["learning_rate"]),
        guard={},  # pyright: ignore[reportArgumentType]  # of a state that is not trained
        ema={},
        totals={},
    )
    checkpoints = Checkpoints(found.path)
    try:
        checkpoints.save_last(state, {})
    finally:
        checkpoints.close()
