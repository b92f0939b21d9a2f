"""The weights that a training starts from: read, compared with the network, and identified."""

import dataclasses
import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from deepjax.data import Dataset
from deepjax.errors import InputError, describe_error, require
from deepjax.io import sha256_of
from deepjax.models.weights.convert import load_pretrained
from deepjax.models.weights.files import weights_file
from deepjax.models.weights_table import PUBLIC_WEIGHTS
from deepjax.paths import user_path
from deepjax.training.checkpoint.inspect import digest, read_state
from deepjax.training.config import TrainConfig, is_custom, parse_fields

PHOTOGRAPH_CHANNELS = 3
NEW = " newly initialised"  # the end of the warning of `load_pretrained`
Leaves = dict[tuple[str, ...], Any]  # by collection, modules and leaf


@dataclasses.dataclass(frozen=True, eq=False)
class StartingWeights:
    """Weights in the shapes of a network, without the layers that are newly initialised."""

    identity: dict[str, Any]
    """Their source, and the sha256 of the file or the digest of the run's checkpoint."""
    leaves: Leaves
    new: tuple[str, ...]
    """The layers that are newly initialised."""

    def variables(self, initial: Mapping[str, Any]) -> dict[str, Any]:
        """The weights; from `initial`, the variables of the run's seed, those of the new layers."""
        flat: Leaves = flatten_dict(dict(initial))
        found = {
            path: jnp.asarray(self.leaves.get(path, leaf), leaf.dtype)
            for path, leaf in flat.items()
        }
        return {"batch_stats": {}} | unflatten_dict(found)

    def summary(self) -> str:
        """One line: the source, and what is new."""
        new = "".join(f", {name} newly initialised" for name in self.new)
        return f"starts from {self.identity['source']}{new}"


def dataset_of(config: TrainConfig) -> Dataset:
    """The data set of a run, with the mean and std that the weights it starts from expect.

    These are the data set's but for the public weights whose row says 0.5 (`PublicWeights.half`),
    and for a run, whose own are taken for images of the same kind.
    """
    dataset = config.described
    if is_run(config.transfer.weights):
        start = _stored(Path(config.transfer.weights).expanduser() / "dataset.json")
        same = start.get("encoded") == dataset.encoded and len(start["mean"]) == dataset.shape[2]
        if not same:
            return dataset
        return dataclasses.replace(dataset, mean=tuple(start["mean"]), std=tuple(start["std"]))
    known = PUBLIC_WEIGHTS.get(config.model, {})
    row = known.get(re.sub("^hf[-_]hub:", "", config.transfer.weights))
    if row is None or not row.half:
        return dataset
    half = (127.5,) * dataset.shape[2]
    return dataclasses.replace(dataset, mean=half, std=half)


def read_weights(
    config: TrainConfig, shapes: Mapping[str, Any], classifier: frozenset[tuple[str, ...]]
) -> StartingWeights:
    """The weights of `config.transfer.weights` for a network; a new classifier where it differs.

    shapes: of the network's "params" and "batch_stats". classifier: the paths of its parameters,
    which alone may be missing or have another shape. Kernels for 3 channels are adapted to other
    images: for one channel their sum over the channels, for others their copies in turn times
    3 / channels (as in timm). Raises InputError for weights of another network, naming the
    parameters.
    """
    source = config.transfer.weights
    loaded, identity = _read(config, classifier)
    found: Leaves = {}
    new: set[str] = set()
    other = []
    wanted: Leaves = flatten_dict(dict(shapes))
    for path, leaf in wanted.items():
        given = loaded.get(path)
        adapted = None if given is None else _adapted(np.asarray(given), leaf.shape)
        if adapted is not None:
            found[path] = adapted
        elif path[0] == "params" and path[1:] in classifier:
            new.add("/".join(path[1:-1]))
        else:
            shape = "missing" if given is None else f"{np.shape(given)}"
            other.append(f"{'/'.join(path[1:])} is {shape}, the network has {leaf.shape}")
    if other:
        raise InputError(
            f"weights is {source!r}, which are not of {config.model}: {'; '.join(other[:4])}"
            + (f" and {len(other) - 4} more" if len(other) > 4 else "")
        )
    return StartingWeights(identity, found, tuple(sorted(new)))


def _read(
    config: TrainConfig, classifier: frozenset[tuple[str, ...]]
) -> tuple[Leaves, dict[str, Any]]:
    """Variables of a run directory, or of a file, a folder or a repository; and their identity.

    Without the layers that `load_pretrained` initialises for other classes.
    """
    source = config.transfer.weights
    if is_run(source):
        return _of_run(config, user_path(source, "weights"), classifier)
    if is_custom(config.model):
        raise InputError(
            f"weights is {source!r}; allowed: a run directory, for {config.model}, which has no "
            "twin in torchvision or timm"
        )
    fields: dict[str, Any] = parse_fields(config.model_args)
    if config.width:
        fields["width"] = config.width
    entry = config.transfer.weights_entry
    fields |= {"num_classes": config.num_classes, "entry": entry or None}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded = load_pretrained(config.model, source, **fields)
    new: set[str] = set()
    for each in caught:
        text = str(each.message)
        if text.endswith(NEW):
            new |= set(text.removesuffix(NEW).rpartition(": ")[2].split(", "))
        else:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
    flat: Leaves = flatten_dict(dict(loaded))
    leaves = {path: leaf for path, leaf in flat.items() if "/".join(path[1:-1]) not in new}
    identity = {"source": source, "entry": entry, "sha256": sha256_of(weights_file(source))}
    return leaves, identity


def is_run(source: str) -> bool:
    """Whether weights are those of a run directory."""
    path = Path(source).expanduser()
    return (path / "config.json").is_file() and (path / "checkpoints").is_dir()


def _of_run(
    config: TrainConfig, path: Path, classifier: frozenset[tuple[str, ...]]
) -> tuple[Leaves, dict[str, Any]]:
    """Variables of a run of the same network; without its classifier if its classes are others."""
    there, described = _stored(path / "config.json"), _stored(path / "dataset.json")
    same = (there["model"], there.get("model_args", [])) == (config.model, [*config.model_args])
    named = " ".join((config.model, *config.model_args))
    require(same, "weights", str(path), f"a run of {named}, not {there['model']}")
    step, sha256 = digest(path)
    _, state = read_state(path, step)
    kept = state["ema"] or state
    leaves: Leaves = flatten_dict({n: kept.get(n) or {} for n in ("params", "batch_stats")})
    theirs, mine = described.get("label_names", []), [*config.described.label_names]
    other = there["dataset"].partition("[")[0] != config.dataset.partition("[")[0]
    if other and (not mine or theirs != mine):
        require(
            bool(classifier),
            "weights",
            str(path),
            f"a run on {config.dataset}, for {config.model}: none of its parameters has a shape "
            "that depends on the number of classes, so its last layer is not known",
        )
        leaves = {p: leaf for p, leaf in leaves.items() if p[1:] not in classifier}
    return leaves, {"source": config.transfer.weights, "step": step, "digest": sha256}


def _stored(path: Path) -> dict[str, Any]:
    """The object in a file of a run directory. Raises InputError where it cannot be read."""
    try:
        found = json.loads(path.read_text())
        return {"model": "", "dataset": "", "mean": [], "std": []} | dict(found)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({describe_error(error)})") from error


def _adapted(given: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """Numbers in the shape of a parameter: as they are, or a kernel for other channels."""
    if given.shape == shape:
        return given
    is_kernel = given.ndim == len(shape) == 4 and given.shape[2] == PHOTOGRAPH_CHANNELS
    if not is_kernel or given.shape[:2] + given.shape[3:] != shape[:2] + shape[3:]:
        return None
    channels = shape[2]
    if channels == 1:
        return given.sum(2, keepdims=True)
    repeated = np.take(given, np.arange(channels) % PHOTOGRAPH_CHANNELS, axis=2)
    return repeated * (PHOTOGRAPH_CHANNELS / channels)
