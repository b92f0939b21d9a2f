"""Training that starts from weights: what is loaded, and batch norms that are frozen."""

import dataclasses
import json
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from deepjax.data import Dataset, dataset_info
from deepjax.errors import InputError, describe_error, require
from deepjax.models.layers.norms import BatchNorm
from deepjax.models.weights.convert import load_pretrained
from deepjax.models.weights_table import PUBLIC_WEIGHTS
from deepjax.paths import user_path
from deepjax.training.checkpoint.inspect import read_state
from deepjax.training.config import TrainConfig, is_custom, parse_fields

PHOTOGRAPH_CHANNELS = 3
NEW = " newly initialised"  # the end of the warning of `load_pretrained`
Say = Callable[[str], None]


class FrozenBatchNorm(nn.Module):
    """A network whose batch norms use their running averages in training, and do not change them.

    Its parameters and statistics keep their names. Of deepjax's and flax.linen's batch norms.
    """

    unfrozen: nn.Module

    def setup(self) -> None:
        nn.share_scope(self, self.unfrozen)

    def __call__(self, images: jax.Array, train: bool = False) -> Any:
        """The network's output; dropout and the like follow `train`."""

        def intercept(function: Any, given: Any, named: Any, context: Any) -> Any:
            module = context.module
            if context.method_name == "__call__" and isinstance(module, BatchNorm):
                object.__setattr__(module, "train", False)
            if context.method_name == "__call__" and isinstance(module, nn.BatchNorm):
                object.__setattr__(module, "use_running_average", None)
                named = {**named, "use_running_average": True}
            return function(*given, **named)

        with nn.intercept_methods(intercept):
            return self.unfrozen(images, train=train)  # pyright: ignore[reportCallIssue]


def dataset_of(config: TrainConfig) -> Dataset:
    """The data set of a run, with the mean and std that the weights it starts from expect.

    These are the data set's but for the public weights whose row says 0.5 (`PublicWeights.half`),
    and for a run, whose own are taken for images of the same kind.
    """
    dataset = dataset_info(config.dataset)
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


def starting_variables(
    config: TrainConfig, initial: Mapping[str, Any], key: jax.Array, say: Say
) -> dict[str, Any]:
    """The weights of `config.transfer.weights` in the network; a new classifier where it differs.

    initial: "params" and "batch_stats" of the network as the run's seed initialises them, which the
    classifier keeps for other classes. Kernels for 3 channels are adapted to other images: for one
    channel their sum over the channels, for others their copies in turn times 3 / channels (as in
    timm). Raises InputError for weights of another network, naming the parameters.
    """
    source = config.transfer.weights
    variables, new = _read(config, key)
    loaded: dict[tuple[str, ...], Any] = flatten_dict(dict(variables))
    wanted: dict[tuple[str, ...], Any] = flatten_dict(
        {name: initial[name] for name in ("params", "batch_stats")}
    )
    found, other = {}, []
    for path, leaf in wanted.items():
        given = loaded.get(path)
        adapted = None if given is None else _adapted(np.asarray(given), leaf.shape)
        if adapted is not None:
            found[path] = jnp.asarray(adapted, leaf.dtype)
        elif _is_classifier(path):
            found[path] = leaf
            new = new | {"/".join(path[1:-1])}
        else:
            shape = "missing" if given is None else f"{np.shape(given)}"
            other.append(f"{'/'.join(path[1:])} is {shape}, the network has {leaf.shape}")
    if other:
        raise InputError(
            f"weights is {source!r}, which are not of {config.model}: {'; '.join(other[:4])}"
            + (f" and {len(other) - 4} more" if len(other) > 4 else "")
        )
    say(f"starts from {source}" + "".join(f", {name} newly initialised" for name in sorted(new)))
    return unflatten_dict(found)


def _read(config: TrainConfig, key: jax.Array) -> tuple[Mapping[str, Any], set[str]]:
    """Variables of a run directory, or of a file, a folder or a repository of weights.

    And the layers in them that are new.
    """
    source = config.transfer.weights
    if is_run(source):
        return _of_run(config, user_path(source, "weights")), set()
    if is_custom(config.model):
        raise InputError(
            f"weights is {source!r}; allowed: a run directory, for {config.model}, which has no "
            "twin in torchvision or timm"
        )
    fields: dict[str, Any] = parse_fields(config.model_args)
    if config.width:
        fields["width"] = config.width
    fields |= {"num_classes": config.num_classes, "entry": config.transfer.weights_entry or None}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded = load_pretrained(config.model, source, key=key, **fields)
    new: set[str] = set()
    for each in caught:
        text = str(each.message)
        if text.endswith(NEW):
            new |= set(text.removesuffix(NEW).rpartition(": ")[2].split(", "))
        else:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
    return {"batch_stats": {}} | loaded, new


def is_run(source: str) -> bool:
    """Whether weights are those of a run directory."""
    path = Path(source).expanduser()
    return (path / "config.json").is_file() and (path / "checkpoints").is_dir()


def _of_run(config: TrainConfig, path: Path) -> Mapping[str, Any]:
    """Variables of a run of the same network; without its classifier where the classes differ."""
    there, described = _stored(path / "config.json"), _stored(path / "dataset.json")
    same = (there["model"], there.get("model_args", [])) == (config.model, [*config.model_args])
    named = " ".join((config.model, *config.model_args))
    require(same, "weights", str(path), f"a run of {named}, not {there['model']}")
    _, state = read_state(path)
    kept = state["ema"] or state
    variables = {"params": kept["params"], "batch_stats": kept.get("batch_stats") or {}}
    theirs, mine = described.get("label_names", []), [*dataset_info(config.dataset).label_names]
    other = there["dataset"].partition("[")[0] != config.dataset.partition("[")[0]
    if other and (not mine or theirs != mine):
        flat = flatten_dict(variables)
        variables = unflatten_dict({p: v for p, v in flat.items() if not _is_classifier(p)})
    return variables


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


def _is_classifier(path: tuple[str, ...]) -> bool:
    """Whether a parameter is of the last layer, or of the last of an auxiliary head."""
    return path[0] == "params" and (
        path[1].startswith("head") or (path[1].startswith("auxiliary") and path[2] == "logits")
    )
