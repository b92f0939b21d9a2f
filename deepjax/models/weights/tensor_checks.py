"""Checks of tensors and variables before their conversion; every error is one line."""

import math
import re
import warnings
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from deepjax.errors import InputError
from deepjax.models.registry import create_model, list_models, model_info
from deepjax.models.weights.tensor_pairs import TensorPair, Tensors, abstract_leaves, tensor_pairs
from deepjax.models.weights.torch_names import layouts

_NO_PARAMETERS = ("running_mean", "running_var", "num_batches_tracked")
_CLASSIFIERS = ("fc", "head.fc", "classifier.6")  # theirs, in the layouts that there are


def missing_tensors(pairs: list[TensorPair], tensors: Tensors) -> list[str]:
    """Names of tensors that the network needs and the file lacks."""
    return [
        pair.tensor for pair in pairs if pair.tensor not in tensors and pair.path[0] != "counters"
    ]


def check_names(name: str, pairs: list[TensorPair], tensors: Tensors) -> None:
    """Raise InputError for tensors that are missing or unknown."""
    missing = missing_tensors(pairs, tensors)
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
            f"{format_list(complaints)}{hint or matching_models(tensors)}"
        )


def check_tensor_types(name: str, pairs: list[TensorPair], tensors: Tensors) -> None:
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
        raise InputError(f"weights of {name} are floats: {format_list(wrong)}{hint}")
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
            f"{name}: {len(rounded)} tensors of float64 are rounded to {rounded[0].dtype}; dtype "
            "and param_dtype float64 under JAX_ENABLE_X64=1 keep them",
            stacklevel=4,
        )


def matching_models(tensors: Tensors) -> str:
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
        if not model_info(name).table:  # registered: it has no names in PyTorch
            continue
        model = create_model(name)
        added = (head[0] - model.num_classes) * (math.prod(head[1:]) + 1)  # pyright: ignore[reportAttributeAccessIssue]
        if model_info(name).params + added == sum(sizes.values()):
            leaves = (
                abstract_leaves(create_model(name, num_classes=head[0]), name)
                if layouts(model)
                else {}
            )
            candidates = [tensor_pairs(leaves, layout) for layout in layouts(model).values()]
            fits += [name] * any(
                given <= {(pair.tensor, pair.tensor_shape) for pair in pairs}
                for pairs in candidates
            )
    return (
        f"; their names and shapes are those of {' and of '.join(fits)}, num_classes={head[0]}"
        if fits
        else ""
    )


def check_collections(name: str, variables: Mapping[str, Any]) -> None:
    """Raise InputError for parameters without their collection, and for those of scanned blocks."""
    if "params" not in variables:
        raise InputError(
            f"these are not variables of {name}: the collection 'params' is missing; there are "
            f"{format_list([*variables])}"
        )
    if any(re.fullmatch(r"stage\d+_blocks", module) for module in variables["params"]):
        raise InputError(
            f"these are variables of {name} with scan=True; give unstack_blocks(variables)"
        )


def format_list(complaints: list[str], limit: int = 8) -> str:
    """The first complaints in one line, and how many more there are."""
    rest = f" and {len(complaints) - limit} more" if len(complaints) > limit else ""
    return "; ".join(complaints[:limit]) + rest
