"""Conversion of weights to and from PyTorch, under torchvision's and timm's names.

The order of axes changes (kernels are height, width, in, out here), the numbers do not: a round
trip is bitwise exact. Only tensors that the network stores in fewer bits than the file are rounded,
with a warning. Nothing is ever unpickled: a `.pth` is read by `torch.load(weights_only=True)` of
torch 2.10 or newer, or not at all.
"""

import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from deepjax.errors import InputError, require, unknown_name_error
from deepjax.models.classifier import classifier_paths
from deepjax.models.registry import create_model, model_info
from deepjax.models.weights.files import SOURCES, read_tensors, write_safetensors
from deepjax.models.weights.tensor_checks import (
    check_collections,
    check_names,
    check_tensor_types,
    format_list,
    matching_models,
    missing_tensors,
)
from deepjax.models.weights.tensor_pairs import (
    TensorPair,
    Tensors,
    abstract_leaves,
    input_channels,
    tensor_channels,
    tensor_pairs,
)
from deepjax.models.weights.torch_names import layouts
from deepjax.models.weights.torch_prefixes import unwrap
from deepjax.paths import user_path

Layout = Literal["torchvision", "timm"]
Variables = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Converted:
    """Variables of a network, and which of its layers the tensors did not give."""

    variables: Variables
    new: tuple[str, ...] = ()
    """The layers of a classifier for other classes, which are newly initialised."""
    note: str = ""
    """A warning that names them; "" if there are none."""


def from_torch(
    name: str,
    tensors: Tensors,
    *,
    num_classes: int | None = None,
    key: jax.Array | None = None,
    entry: str | None = None,
    **overrides: Any,
) -> Variables:
    """Tensors under torchvision's or timm's names -> variables of `create_model(name, ...)`.

    dtypes are those at initialisation: float16 becomes float32, and so does float64, with a
    warning, unless param_dtype=float64. With `num_classes`, a classifier for another number of
    classes is newly initialised (from `key`), with a warning; the auxiliary heads' too.
    `auxiliary=False` drops auxiliary heads and their tensors. The number of image channels is that
    of the stem's tensor. For scan=True see `stack_blocks`. Prefixes of wrapped modules ("module.",
    "_orig_mod.") and of a trainer's checkpoint ("state_dict.", "model.") are removed, with a
    warning; `entry` is the prefix to read where there are several networks, such as "model_ema".
    Raises InputError naming each tensor that is missing, unknown, not floating or of another shape
    (both shapes), for several networks without `entry`, and for unknown names.
    """
    return _with_warning(
        convert_tensors(name, tensors, num_classes=num_classes, key=key, entry=entry, **overrides)
    )


def convert_tensors(
    name: str,
    tensors: Tensors,
    *,
    num_classes: int | None = None,
    key: jax.Array | None = None,
    entry: str | None = None,
    **overrides: Any,
) -> Converted:
    """As `from_torch`; new layers are named, not warned of."""
    model = _model(name, num_classes, overrides)
    theirs, leaves = [*layouts(model).values()], abstract_leaves(model, name)
    tensors = _unwrapped(name, [tensor_pairs(leaves, layout) for layout in theirs], tensors, entry)
    if overrides.get("auxiliary") is False:
        tensors = _without_heads(model, tensors)
    channels = next(
        (found for layout in theirs if (found := tensor_channels(layout, tensors)) is not None),
        None,
    )
    if channels not in (None, model_info(name).input_shape[-1]):
        leaves = abstract_leaves(model, name, channels)
    candidates = [tensor_pairs(leaves, layout) for layout in theirs]
    pairs = min(candidates, key=lambda pairs: len(missing_tensors(pairs, tensors)))
    check_names(name, pairs, tensors)
    check_tensor_types(name, pairs, tensors)
    numbers, other_shape = {}, []
    for pair in pairs:
        if pair.tensor in tensors:
            tensor = np.asarray(tensors[pair.tensor])
            if tensor.shape == pair.tensor_shape:
                numbers[pair.path] = pair.from_torch(tensor)
            else:
                other_shape.append((pair, tensor.shape))
    if not other_shape:
        return Converted(unflatten_dict(numbers))
    key = jax.random.key(0) if key is None else key
    classifiers = _new_classifiers(model, name, other_shape, num_classes, key, tensors)
    new = tuple(sorted({"/".join(path[1:-1]) for path in classifiers}))
    count = other_shape[0][1][0]
    note = (
        f"{name}: the weights have {count} classes, num_classes is {num_classes}: "
        f"{', '.join(new)} newly initialised"
    )
    return Converted(unflatten_dict(numbers | classifiers), new, note)


def to_torch(
    name: str, variables: Mapping[str, Any], layout: Layout | None = None, **overrides: Any
) -> dict[str, np.ndarray]:
    """Variables -> tensors under the names of `layout`, for `load_state_dict`.

    layout: by default torchvision's where it has the network. The numbers of classes and image
    channels, and the presence of auxiliary heads, are read off the variables. Raises InputError
    naming each leaf that is missing, unknown or of another shape.
    """
    variables = nn.meta.unbox(variables)
    check_collections(name, variables)
    flat = {path: np.asarray(leaf) for path, leaf in flatten_dict(dict(variables)).items()}
    model = _model(name, _classes(flat), _heads(name, flat) | overrides)
    allowed = layouts(model)
    chosen = layout or next(iter(allowed))
    if chosen not in allowed:
        raise unknown_name_error(f"layout of {name}", chosen, allowed)
    kernel = flat.get(("params", allowed[chosen].stem, "kernel"))
    pairs = tensor_pairs(
        abstract_leaves(model, name, None if kernel is None else input_channels(kernel.shape, 2)),
        allowed[chosen],
    )
    expected = {pair.path: pair for pair in pairs}
    wrong = [f"{'/'.join(path)} is not a leaf of it" for path in flat if path not in expected]
    for path, pair in expected.items():
        if path[0] == "counters":
            flat.setdefault(path, np.zeros((), np.int64))
        if path not in flat:
            wrong.append(f"{'/'.join(path)} {pair.shape} is missing")
        elif flat[path].shape != pair.shape:
            wrong.append(f"{'/'.join(path)} is {flat[path].shape}, the network has {pair.shape}")
    if wrong:
        raise InputError(f"these are not variables of {name}: {format_list(wrong)}")
    return {pair.tensor: pair.to_torch(flat[pair.path]) for pair in pairs}


def load_pretrained(
    name: str,
    source: str | Path,
    *,
    num_classes: int | None = None,
    key: jax.Array | None = None,
    revision: str | None = None,
    entry: str | None = None,
    **overrides: Any,
) -> Variables:
    """Variables from a file, a folder or a Hugging Face repository of weights.

    `source`: a .safetensors, .npz or .pth file; a folder with model.safetensors; or a repository
    such as "timm/resnet50.a1_in1k" (at `revision`), which is downloaded once into the user's cache
    and needs the extra `hub`. The keys of nested dictionaries in a .pth are prefixes of the names:
    `entry="model_ema"` reads that one of a checkpoint. The rest is as in `from_torch`, which
    compares names and shapes; the name must be right about what shows in neither: torchvision's
    resnet50 strides in the 3x3 convolution, the paper's (`resnet50_v1` here) in the 1x1. Images
    must be normalised as the weights expect: by ImageNet's mean and std for most, by 0.5 and 0.5
    for GoogLeNet and Inception-v3.
    """
    options = {"num_classes": num_classes, "key": key, "entry": entry} | overrides
    return _with_warning(read_pretrained(name, source, revision=revision, **options))


def read_pretrained(
    name: str, source: str | Path, *, revision: str | None = None, **options: Any
) -> Converted:
    """As `load_pretrained`, whose options it takes; new layers are named, not warned of."""
    check_source(name, source)  # before anything is downloaded
    return convert_tensors(name, read_tensors(source, revision), **options)


def check_source(name: str, source: str | Path, field: str = "source") -> None:
    """Raise InputError for what is no source of weights of a network, and for an unknown network.

    Weights that only torchvision has are no source. field: the option's name in messages.
    """
    info = model_info(name)
    if not isinstance(source, str | Path):
        known = [weights for weights, _ in info.weights if weights.startswith("timm/")]
        hint = f"{SOURCES}{f', such as {known[0]!r}' if known else ''}"
        require(False, field, source, hint)
    if str(source).startswith("torchvision ") and not user_path(source, field).exists():
        raise InputError(
            f"{field} is {str(source)!r}, which only torchvision has; write it to a file by "
            f"torch.save(torchvision.models.get_model({name.removesuffix('_tv')!r}, "
            f"weights={str(source).split()[-1]!r}).state_dict(), '{name}.pth') and give that file"
        )


def save_safetensors(
    path: str | Path,
    name: str,
    variables: Mapping[str, Any],
    layout: Layout | None = None,
    overwrite: bool = False,
    **overrides: Any,
) -> None:
    """Write variables as a safetensors file that torchvision, timm and `load_pretrained` read.

    The file is complete or absent. `layout` and the fields in `overrides` are those of `to_torch`.
    Raises InputError when the file exists (unless `overwrite`) or cannot be written, and as
    `to_torch` does.
    """
    write_safetensors(
        user_path(path, "path"),
        to_torch(name, variables, layout, **overrides),
        {"format": "pt", "architecture": name},
        overwrite,
    )


def _model(name: str, num_classes: int | None, overrides: Mapping[str, Any]) -> nn.Module:
    classes = {} if num_classes is None else {"num_classes": num_classes}
    model = create_model(name, **classes, **overrides)
    if getattr(model, "scan", False):
        raise InputError(
            f"scan=True: exchange the weights of {name} unrolled, and convert with stack_blocks or "
            "unstack_blocks"
        )
    if not layouts(model):
        raise InputError(
            f"{name} has no twin in torchvision or timm; its variables can be kept by Orbax"
        )
    return model


def _unwrapped(
    name: str, candidates: list[list[TensorPair]], tensors: Tensors, entry: str | None
) -> Tensors:
    """The tensors under the network's names, with a warning about removed prefixes."""
    wanted = {pair.tensor for pairs in candidates for pair in pairs}
    found = unwrap(tensors, wanted, entry)
    if found.note:
        warnings.warn(f"{name}: {found.note}", stacklevel=4)
    return {short: tensors[given] for short, given in found.given.items()}


def _without_heads(model: nn.Module, tensors: Tensors) -> Tensors:
    """The tensors that belong to no auxiliary head, as in torchvision with aux_logits=False."""
    heads = tuple(head for layout in layouts(model).values() for head in layout.heads)
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(heads)}


def _new_classifiers(
    model: nn.Module,
    name: str,
    other: list[tuple[TensorPair, tuple[int, ...]]],
    num_classes: int | None,
    key: jax.Array,
    tensors: Tensors,
) -> dict[tuple[str, ...], np.ndarray]:
    """New classifiers for another number of classes; any other difference of shape is an error."""
    input_shape = model_info(name).input_shape
    classes = model.num_classes  # pyright: ignore[reportAttributeAccessIssue]  # of every network
    paths = classifier_paths(lambda count: model.clone(num_classes=count), classes, input_shape)

    def is_classifier(pair: TensorPair, shape: tuple[int, ...]) -> bool:
        return pair.path[1:] in paths and pair.tensor_shape[1:] == shape[1:]

    classifiers = [
        pair for pair, shape in other if num_classes is not None and is_classifier(pair, shape)
    ]
    if len(classifiers) < len(other):
        hint = (
            "" if num_classes is not None else "; for another number of classes give num_classes="
        )
        listed = format_list(
            [
                f"{pair.tensor} is {shape}, the network has {pair.tensor_shape}"
                for pair, shape in other
            ]
        )
        only_classes = all(pair.path[1:] in paths for pair, _ in other)
        raise InputError(
            f"these are not weights of {name}: "
            f"{listed}{hint if only_classes else matching_models(tensors) or hint}"
        )
    images = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    initial = flatten_dict(dict(model.lazy_init(key, images)))
    return {pair.path: np.asarray(initial[pair.path]) for pair in classifiers}


def _with_warning(found: Converted) -> Variables:
    if found.note:
        warnings.warn(found.note, stacklevel=3)
    return found.variables


def _classes(flat: Mapping[tuple[str, ...], np.ndarray]) -> int | None:
    """Number of classes of variables: the length of the classifier's bias."""
    return next(
        (
            len(leaf)
            for path, leaf in flat.items()
            if path[1] in ("head", "head_fc8") and path[-1] == "bias"
        ),
        None,
    )


def _heads(name: str, flat: Mapping[tuple[str, ...], np.ndarray]) -> dict[str, bool]:
    """The field `auxiliary` of a network that has it, as in the variables."""
    has_field = "auxiliary" in {field.name for field in dataclasses.fields(create_model(name))}
    return {"auxiliary": any(path[1].startswith("auxiliary") for path in flat)} if has_field else {}
