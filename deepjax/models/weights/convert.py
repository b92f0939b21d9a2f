"""Conversion of weights to and from PyTorch, under torchvision's and timm's names.

The order of axes changes (kernels are height, width, in, out here), the numbers do not: a round
trip is bitwise exact. Only tensors that the network stores in fewer bits than the file are rounded,
with a warning. Nothing is ever unpickled: a `.pth` is read by `torch.load(weights_only=True)` of
torch 2.10 or newer, or not at all.
"""

import dataclasses
import math
import re
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
from deepjax.models.registry import create_model, list_models, model_info
from deepjax.models.weights.files import SOURCES, read_tensors, write_safetensors
from deepjax.models.weights.torch_names import TorchLayout, layouts
from deepjax.models.weights.torch_prefixes import unwrap
from deepjax.paths import user_path

Layout = Literal["torchvision", "timm"]
Tensors = Mapping[str, np.ndarray]
Variables = dict[str, Any]

# Our leaf -> theirs. The counter is PyTorch's bookkeeping: kept so that a round trip loses nothing,
# read by no module.
_LEAVES = {
    "kernel": "weight",
    "bias": "bias",
    "scale": "weight",
    "gain": "gain",
    "mean": "running_mean",
    "var": "running_var",
    "batches": "num_batches_tracked",
}
_NO_PARAMETERS = ("running_mean", "running_var", "num_batches_tracked")
_CLASSIFIERS = ("fc", "head.fc", "classifier.6")  # theirs, in the layouts that there are


@dataclasses.dataclass(frozen=True)
class TensorPair:
    """A leaf of our variables and the tensor with the same numbers."""

    path: tuple[str, ...]  # collection, modules, leaf
    shape: tuple[int, ...]
    tensor: str
    tensor_shape: tuple[int, ...]
    axes: tuple[int, ...]  # order of our axes in theirs, after our leaf is seen as `split`
    split: tuple[int, ...]
    dtype: Any = None  # of ours at initialisation; None for a counter, which stays as it is

    def to_torch(self, leaf: np.ndarray) -> np.ndarray:
        """Ours -> theirs, a copy."""
        return np.array(leaf.reshape(self.split).transpose(self.axes), order="C").reshape(
            self.tensor_shape
        )

    def from_torch(self, tensor: np.ndarray) -> np.ndarray:
        """Theirs -> ours, a copy, as PyTorch updates statistics in place."""
        moved = tensor.reshape([self.split[axis] for axis in self.axes])
        with np.errstate(over="ignore"):  # refused by `_check_types`
            return np.array(moved.transpose(np.argsort(self.axes)), self.dtype, order="C").reshape(
                self.shape
            )


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
    model = _model(name, num_classes, overrides)
    theirs, leaves = [*layouts(model).values()], _leaves(model, name)
    tensors = _unwrapped(name, [_pairs(leaves, layout) for layout in theirs], tensors, entry)
    if overrides.get("auxiliary") is False:
        tensors = _without_heads(model, tensors)
    channels = next(
        (found for layout in theirs if (found := _tensor_channels(layout, tensors)) is not None),
        None,
    )
    if channels not in (None, model_info(name).input_shape[-1]):
        leaves = _leaves(model, name, channels)
    candidates = [_pairs(leaves, layout) for layout in theirs]
    pairs = min(candidates, key=lambda pairs: len(_missing(pairs, tensors)))
    _check_names(name, pairs, tensors)
    _check_types(name, pairs, tensors)
    numbers, other_shape = {}, []
    for pair in pairs:
        if pair.tensor in tensors:
            tensor = np.asarray(tensors[pair.tensor])
            if tensor.shape == pair.tensor_shape:
                numbers[pair.path] = pair.from_torch(tensor)
            else:
                other_shape.append((pair, tensor.shape))
    if other_shape:
        numbers |= _reinitialize_classifiers(
            model,
            name,
            other_shape,
            num_classes,
            jax.random.key(0) if key is None else key,
            tensors,
        )
    return unflatten_dict(numbers)


def to_torch(
    name: str, variables: Mapping[str, Any], layout: Layout | None = None, **overrides: Any
) -> dict[str, np.ndarray]:
    """Variables -> tensors under the names of `layout`, for `load_state_dict`.

    layout: by default torchvision's where it has the network. The numbers of classes and image
    channels, and the presence of auxiliary heads, are read off the variables. Raises InputError
    naming each leaf that is missing, unknown or of another shape.
    """
    variables = nn.meta.unbox(variables)
    _check_collections(name, variables)
    flat = {path: np.asarray(leaf) for path, leaf in flatten_dict(dict(variables)).items()}
    model = _model(name, _classes(flat), _heads(name, flat) | overrides)
    allowed = layouts(model)
    chosen = layout or next(iter(allowed))
    if chosen not in allowed:
        raise unknown_name_error(f"layout of {name}", chosen, allowed)
    kernel = flat.get(("params", allowed[chosen].stem, "kernel"))
    pairs = _pairs(
        _leaves(model, name, None if kernel is None else _channels(kernel.shape, 2)),
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
        raise InputError(f"these are not variables of {name}: {_listed(wrong)}")
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
    info = model_info(name)  # raises for an unknown name before anything is downloaded
    if str(source).startswith("torchvision ") and not Path(source).exists():
        raise InputError(
            f"source is {str(source)!r}, which only torchvision has; write it to a file by "
            "torch.save(torchvision.models.get_model("
            f"{name.removesuffix('_tv')!r}, weights={str(source).split()[-1]!r}).state_dict(), "
            f"'{name}.pth') and give that file"
        )
    if not isinstance(source, str | Path):
        known = [weights for weights, _ in info.weights if weights.startswith("timm/")]
        hint = f"{SOURCES}{f', such as {known[0]!r}' if known else ''}"
        require(False, "source", source, hint)
    tensors = read_tensors(source, revision)
    return from_torch(name, tensors, num_classes=num_classes, key=key, entry=entry, **overrides)


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


def _check_collections(name: str, variables: Mapping[str, Any]) -> None:
    """Raise InputError for parameters without their collection, and for those of scanned blocks."""
    if "params" not in variables:
        raise InputError(
            f"these are not variables of {name}: the collection 'params' is missing; there are "
            f"{_listed([*variables])}"
        )
    if any(re.fullmatch(r"stage\d+_blocks", module) for module in variables["params"]):
        raise InputError(
            f"these are variables of {name} with scan=True; give unstack_blocks(variables)"
        )


def _unwrapped(
    name: str, candidates: list[list[TensorPair]], tensors: Tensors, entry: str | None
) -> Tensors:
    """The tensors under the network's names, with a warning about removed prefixes."""
    wanted = {pair.tensor for pairs in candidates for pair in pairs}
    found = unwrap(tensors, wanted, entry)
    if found.note:
        warnings.warn(f"{name}: {found.note}", stacklevel=3)
    return {short: tensors[given] for short, given in found.given.items()}


def _without_heads(model: nn.Module, tensors: Tensors) -> Tensors:
    """The tensors that belong to no auxiliary head, as in torchvision with aux_logits=False."""
    heads = tuple(head for layout in layouts(model).values() for head in layout.heads)
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(heads)}


def _tensor_channels(layout: TorchLayout, tensors: Tensors) -> int | None:
    """Image channels by the stem's tensor (out, in, rows, columns); None where it is missing."""
    tensor = tensors.get(f"{layout.names(layout.stem)}.weight")
    return None if tensor is None else _channels(np.shape(tensor), 1)


def _channels(shape: tuple[int, ...], axis: int) -> int | None:
    """The input channels of a convolution's kernel; None if it has not four axes."""
    return shape[axis] if len(shape) == 4 else None


def _leaves(model: nn.Module, name: str, channels: int | None = None) -> dict[tuple[str, ...], Any]:
    """Shapes and dtypes by path, by abstract evaluation. channels: default the table's."""
    *size, usual = model_info(name).input_shape
    images = jax.ShapeDtypeStruct((1, *size, channels or usual), jnp.float32)
    abstract: Any = jax.eval_shape(model.init, jax.random.key(0), images)
    return flatten_dict(dict(abstract))  # pyright: ignore[reportReturnType]  # paths are tuples without sep=


def _pairs(leaves: Mapping[tuple[str, ...], Any], theirs: TorchLayout) -> list[TensorPair]:
    """Every leaf with its tensor."""
    pairs = [
        dataclasses.replace(_pair(path, leaf.shape, theirs), dtype=leaf.dtype)
        for path, leaf in leaves.items()
    ]
    counters = [("counters", *path[1:-1], "batches") for path in leaves if path[-1] == "mean"]
    return pairs + [_pair(path, (), theirs) for path in counters]


def _pair(path: tuple[str, ...], shape: tuple[int, ...], layout: TorchLayout) -> TensorPair:
    module = "/".join(path[1:-1])
    tensor = f"{layout.names(module)}.{_LEAVES[path[-1]]}"
    if path[-1] == "kernel":
        side = layout.maps.get(module, 1)
        split = shape if len(shape) == 4 else (side, side, shape[0] // side**2, shape[1])
        theirs = (split[3], split[2], split[0], split[1])
        flat = len(shape) == 2 and module not in layout.as_convolution
        return TensorPair(
            path, shape, tensor, (shape[1], shape[0]) if flat else theirs, (3, 2, 0, 1), split
        )
    theirs = (*shape, 1, 1, 1) if path[-1] == "gain" else shape
    return TensorPair(path, shape, tensor, theirs, tuple(range(len(shape))), shape)


def _missing(pairs: list[TensorPair], tensors: Tensors) -> list[str]:
    return [
        pair.tensor for pair in pairs if pair.tensor not in tensors and pair.path[0] != "counters"
    ]


def _check_names(name: str, pairs: list[TensorPair], tensors: Tensors) -> None:
    """Raise InputError for tensors that are missing or unknown."""
    missing = _missing(pairs, tensors)
    extra = sorted(set(tensors) - {pair.tensor for pair in pairs})
    complaints = [f"{tensor} is missing" for tensor in missing] + [
        f"{tensor} is not known" for tensor in extra
    ]
    if complaints:
        heads = any(re.match("aux", tensor, re.IGNORECASE) for tensor in (*missing, *extra))
        hint = (
            "; auxiliary=False or auxiliary=True says whether the auxiliary heads are wanted"
            if heads
            else ""
        )
        raise InputError(
            f"these are not weights of {name}: "
            f"{_listed(complaints)}{hint or _matching_models(tensors)}"
        )


def _check_types(name: str, pairs: list[TensorPair], tensors: Tensors) -> None:
    """Raise InputError for non-floating tensors and too large numbers; warn of rounded float64."""
    given = [
        (pair, np.asarray(tensors[pair.tensor]))
        for pair in pairs
        if pair.dtype is not None and pair.tensor in tensors
    ]
    wrong = [
        f"{pair.tensor} is {tensor.dtype}"
        for pair, tensor in given
        if not jnp.issubdtype(tensor.dtype, jnp.floating)
    ]
    if wrong:
        is_raw = any(tensor.dtype.kind == "V" for _, tensor in given)
        hint = "; a .npz cannot hold bfloat16: save float32 or a .safetensors" if is_raw else ""
        raise InputError(f"weights of {name} are floats: {_listed(wrong)}{hint}")
    for pair, tensor in given:
        largest = float(jnp.finfo(pair.dtype).max)
        if float(jnp.finfo(tensor.dtype).max) > largest and np.any(
            np.abs(tensor[np.isfinite(tensor)]) > largest
        ):
            raise InputError(
                f"{pair.tensor} of {name} has numbers too large for {pair.dtype}; give another "
                "param_dtype"
            )
    rounded = [pair for pair, tensor in given if tensor.dtype.itemsize == 8 > pair.dtype.itemsize]
    if rounded:
        warnings.warn(
            f"{name}: {len(rounded)} tensors of float64 are rounded to {rounded[0].dtype}; "
            "dtype and param_dtype float64 under JAX_ENABLE_X64=1 keep them",
            stacklevel=3,
        )


def _matching_models(tensors: Tensors) -> str:
    """A hint at the networks of the table that have these names and shapes, or ""."""
    sizes = {
        tensor: np.size(value)
        for tensor, value in tensors.items()
        if not tensor.endswith(_NO_PARAMETERS)
    }
    head = next(
        (
            np.shape(tensors[f"{head}.weight"])
            for head in _CLASSIFIERS
            if f"{head}.weight" in tensors
        ),
        None,
    )
    if head is None:
        return ""
    fits, given = [], {(tensor, np.shape(value)) for tensor, value in tensors.items()}
    for name in list_models():
        model = create_model(name)
        added = (head[0] - model.num_classes) * (math.prod(head[1:]) + 1)  # pyright: ignore[reportAttributeAccessIssue]
        if model_info(name).params + added == sum(sizes.values()):
            leaves = (
                _leaves(create_model(name, num_classes=head[0]), name) if layouts(model) else {}
            )
            candidates = [_pairs(leaves, layout) for layout in layouts(model).values()]
            fits += [name] * any(
                given <= {(pair.tensor, pair.tensor_shape) for pair in pairs}
                for pairs in candidates
            )
    return (
        f"; their names and shapes are those of {' and of '.join(fits)}, num_classes={head[0]}"
        if fits
        else ""
    )


def _reinitialize_classifiers(
    model: nn.Module,
    name: str,
    other: list[tuple[TensorPair, tuple[int, ...]]],
    num_classes: int | None,
    key: jax.Array,
    tensors: Tensors,
) -> dict[tuple[str, ...], np.ndarray]:
    """New classifiers for another number of classes; any other difference of shape is an error."""
    classifiers = [
        pair
        for pair, shape in other
        if num_classes is not None and _differs_in_classes(pair, shape, num_classes)
    ]
    if len(classifiers) < len(other):
        hint = (
            "" if num_classes is not None else "; for another number of classes give num_classes="
        )
        listed = _listed(
            [
                f"{pair.tensor} is {shape}, the network has {pair.tensor_shape}"
                for pair, shape in other
            ]
        )
        only_classes = all(
            pair.tensor_shape[:1] != shape[:1] and _is_classifier(pair.path)
            for pair, shape in other
        )
        raise InputError(
            f"these are not weights of {name}: "
            f"{listed}{hint if only_classes else _matching_models(tensors) or hint}"
        )
    images = jax.ShapeDtypeStruct((1, *model_info(name).input_shape), jnp.float32)
    initial = flatten_dict(dict(model.lazy_init(key, images)))
    modules = sorted({"/".join(pair.path[1:-1]) for pair in classifiers})
    theirs = other[0][1][0]
    warnings.warn(
        f"{name}: the weights have {theirs} classes, num_classes is {num_classes}: "
        f"{', '.join(modules)} newly initialised",
        stacklevel=3,
    )
    return {pair.path: np.asarray(initial[pair.path]) for pair in classifiers}


def _differs_in_classes(pair: TensorPair, shape: tuple[int, ...], num_classes: int) -> bool:
    """Whether a tensor is a classifier's, and differs only in the number of classes."""
    return (
        pair.tensor_shape[:1] == (num_classes,)
        and shape[1:] == pair.tensor_shape[1:]
        and _is_classifier(pair.path)
    )


def _is_classifier(path: tuple[str, ...]) -> bool:
    return path[1] in ("head", "head_fc8") or (
        path[1].startswith("auxiliary") and path[2] == "logits"
    )


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


def _listed(complaints: list[str], limit: int = 8) -> str:
    rest = f" and {len(complaints) - limit} more" if len(complaints) > limit else ""
    return "; ".join(complaints[:limit]) + rest
