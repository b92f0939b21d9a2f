"""Cost of a network from its traced computation: nothing is run, nothing is looked up."""

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import jax
from flax import linen as nn
from flax.traverse_util import flatten_dict

from deepjax.analysis.core.input_shapes import InputShape, input_shapes
from deepjax.analysis.core.module import Network, name_of
from deepjax.analysis.jaxpr.module_paths import (
    Step,
    computation,
    is_missing,
    shapes_of_variables,
    steps,
)
from deepjax.analysis.jaxpr.products import equation_macs
from deepjax.errors import InputError


def count_params(model: nn.Module | Network, input_shape: InputShape) -> int:
    """Number of trainable parameters, by abstract evaluation. input_shape: (height, width, channels), or as `InputShape` says."""
    return sum(params_by_layer(model, input_shape).values())


def count_macs(model: nn.Module | Network, input_shape: InputShape) -> int:
    """Multiply-adds of convolutions and matrix products for one image in evaluation, from the traced computation.

    Padding counts as computed, as the papers and torchvision count it; zeros that a transposed convolution inserts do not. Loops
    count every turn, a conditional its costliest branch. input_shape: (height, width, channels), or as `InputShape` says: with
    inputs given as the network gets them, the count is that of all their examples.
    Raises InputError, naming them, where some are not counted: in a loop whose length depends on its data, in a kernel that JAX
    cannot look into, or in a primitive that is made of products, such as fft or cholesky. `cost` counts the others.
    """
    return sum(macs_by_layer(model, input_shape).values())


def params_by_layer(model: nn.Module | Network, input_shape: InputShape) -> dict[str, int]:
    """Trainable parameters of each layer that has some, by its path ("stage1_block1/conv1"; "" for the model's own)."""
    return params_of(shapes_of_variables(model, input_shapes(input_shape)))


def macs_by_layer(model: nn.Module | Network, input_shape: InputShape) -> dict[str, int]:
    """What `count_macs` counts, by the path of the module that it is part of, in the order of the forward pass.

    A scanned stage is one entry, counted as often as it runs; layers without convolution or matrix product are absent.
    """
    traced = list(steps(computation(model, input_shapes(input_shape)).jaxpr.jaxpr))
    if missing := not_counted(traced):
        raise InputError(
            f"{name_of(model)} has multiply-adds that are not counted: {'; '.join(missing)}; "
            "use deepjax.analysis.cost, which counts the others and lists these"
        )
    return macs_of(traced)


def params_of(variables: Any) -> dict[str, int]:
    """`params_by_layer` of variables, or of their shapes, that are at hand."""
    counts: dict[str, int] = defaultdict(int)
    for path, leaf in flatten_dict(variables.get("params", {})).items():
        counts["/".join(path[:-1])] += sum(
            math.prod(array.shape) for array in jax.tree.leaves(leaf)
        )
    return dict(counts)


def macs_of(traced: Iterable[Step]) -> dict[str, int]:
    """`macs_by_layer` of a computation that is traced already, without what `not_counted` names."""
    counts: dict[str, int] = defaultdict(int)
    for step in traced:
        macs = 0 if step.unbounded else step.times * equation_macs(step.equation)
        if macs:
            counts[step.path] += macs
    return dict(counts)


def not_counted(traced: Iterable[Step]) -> tuple[str, ...]:
    """What multiplies, or may, and is not counted, and in which layer: "fft of mixer"."""
    missing = [step for step in traced if is_missing(step)]
    return tuple(
        dict.fromkeys(
            f"{step.equation.primitive.name} of {place(step.path, step.unbounded)}"
            for step in missing
        )
    )


def place(path: str, unbounded: bool) -> str:
    """A layer, and whether it is not known how often it runs."""
    return (path or "the network itself") + (
        ", in a while loop whose length depends on its data" if unbounded else ""
    )
