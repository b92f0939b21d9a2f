"""The weights that a training starts from: read, compared with the network, and identified."""

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from deepjax.errors import InputError, require
from deepjax.io import sha256_of
from deepjax.models.weights.convert import check_source, read_pretrained
from deepjax.models.weights.files import read_tensors, weights_file
from deepjax.training.checkpoint.inspect import contents_of, read_state
from deepjax.training.checkpoint.run_copy import local_run
from deepjax.training.config import TrainConfig, is_custom, parse_fields
from deepjax.training.transfer.described import (
    WeightsDescription,
    describe_weights,
    has_other_classes,
    is_run,
    may_test_on_seen_images,
    require_same_network,
)
from deepjax.training.transfer.expected_images import expected_images

PHOTOGRAPH_CHANNELS = 3
UNDER_PATHS = "deepjax"  # the layout of an exported network without PyTorch's names
Names = tuple[str, ...]  # of collection, modules and leaf; of a list its index, as text
Leaves = dict[Names, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class StartingWeights:
    """Weights in the shapes of a network, without the layers that are newly initialised."""

    identity: dict[str, Any]
    """Their source, and the sha256 of the file or the digest of the run's checkpoint."""
    leaves: Leaves
    new: tuple[str, ...]
    """The layers that are newly initialised."""
    statistics: str
    """Which mean and std the images are normalised by, in words."""
    warnings: tuple[str, ...] = ()
    """What may be a mistake, a line each."""

    def variables(self, initial: Mapping[str, Any]) -> dict[str, Any]:
        """The weights; from `initial`, the variables of the run's seed, those of the new layers."""
        flat: Leaves = flatten_dict(dict(initial))
        found = {
            path: jnp.asarray(self.leaves.get(_names(path), leaf), leaf.dtype)
            for path, leaf in flat.items()
        }
        return {"batch_stats": {}} | unflatten_dict(found)

    def summary(self) -> str:
        """One line: the source, what is new, and which mean and std are used."""
        new = "".join(f", {name} newly initialised" for name in self.new)
        return f"starts from {self.identity['source']}{new}; {self.statistics}"


def read_weights(
    config: TrainConfig, shapes: Mapping[str, Any], classifier: frozenset[Names]
) -> StartingWeights:
    """The weights of `config.transfer.weights` for a network; a new classifier where it differs.

    shapes: of the network's "params" and "batch_stats". classifier: the paths of its parameters,
    which alone may be missing or have another shape. Kernels for 3 channels are adapted to other
    images: for one channel their sum over the channels, for others their copies in turn times
    3 / channels (as in timm). Raises InputError for weights of another network, naming the
    parameters.
    """
    source = config.transfer.weights
    about = describe_weights(source)
    wanted, classifier = _flat(shapes), frozenset(map(_names, classifier))
    loaded, identity = _read(config, about, wanted)
    if about is not None and has_other_classes(about, config.described):
        require(
            bool(classifier),
            "weights",
            source,
            f"weights of a training on {config.dataset}, for {config.model}: none of its "
            "parameters has a shape that depends on the number of classes, so its last layer is "
            "not known",
        )
        loaded = {path: leaf for path, leaf in loaded.items() if path[1:] not in classifier}
    found: Leaves = {}
    new: set[str] = set()
    other = [
        f"{'/'.join(path[1:])} is not of it"
        for path in loaded
        if path[0] == "params" and path not in wanted
    ]
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
    images = expected_images(config, about)
    warnings = (images.difference, _seen_images(config, about))
    return StartingWeights(
        identity, found, tuple(sorted(new)), images.statistics, tuple(filter(None, warnings))
    )


def _read(
    config: TrainConfig, about: WeightsDescription | None, wanted: Collection[Names]
) -> tuple[Leaves, dict[str, Any]]:
    """Variables of a run directory, or of a file, a folder or a repository; and their identity.

    Without the layers of a classifier for another number of classes, where their names are
    PyTorch's. wanted: the paths of the network's variables.
    """
    source, entry = config.transfer.weights, config.transfer.weights_entry
    if about is not None:
        allowed = f"'' for {source}, which holds one network"
        require(not entry, "weights_entry", entry, allowed)
        require_same_network(about, config)
    if is_run(source):
        return _of_run(source, local_run(source, "weights"))
    if is_custom(config.model) and about is None:
        raise InputError(
            f"weights is {source!r}; allowed: a run directory or a folder of `deepjax export`, for "
            f"{config.model}, which has no twin in torchvision or timm"
        )
    if not is_custom(config.model):
        check_source(config.model, source, "weights")
    file = weights_file(source, field="weights")
    identity = {"source": source, "entry": entry, "sha256": sha256_of(file)}
    if about is not None and about.layout == UNDER_PATHS:
        paths = {".".join(path): path for path in wanted}
        tensors = read_tensors(file)
        return {
            paths.get(name, tuple(name.split("."))): each for name, each in tensors.items()
        }, identity
    fields: dict[str, Any] = parse_fields(config.model_args)
    if config.width:
        fields["width"] = config.width
    fields |= {"num_classes": config.num_classes, "entry": entry or None}
    converted = read_pretrained(config.model, file, **fields)
    flat, new = _flat(converted.variables), converted.new
    return {path: leaf for path, leaf in flat.items() if "/".join(path[1:-1]) not in new}, identity


def _flat(variables: Mapping[str, Any]) -> Leaves:
    return {_names(path): leaf for path, leaf in flatten_dict(dict(variables)).items()}


def _names(path: tuple[Any, ...]) -> Names:
    return tuple(map(str, path))


def _of_run(source: str, path: Path) -> tuple[Leaves, dict[str, Any]]:
    """Variables of the newest checkpoint of a run, its averages if it keeps some."""
    folder, state = read_state(path)
    contents = contents_of(folder, state)
    kept = state["ema"] or state
    leaves = _flat({name: kept.get(name) or {} for name in ("params", "batch_stats")})
    return leaves, {"source": source, "step": contents.step, "digest": contents.digest}


def _seen_images(config: TrainConfig, about: WeightsDescription | None) -> str:
    """A warning where the weights may have been trained on images that this run tests on."""
    if about is None or not may_test_on_seen_images(about, config.described):
        return ""
    return (
        f"{config.transfer.weights} was trained on {about.dataset}, of which other images are for "
        f"tests than of {config.dataset}; its training images may be among the test images here, "
        f"whose error is then too low; give --dataset {about.dataset!r}"
    )


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
