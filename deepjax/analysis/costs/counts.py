"""Parameter and multiply-add counts, from the traced computation: nothing is run."""

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
    """Number of trainable parameters, by abstract evaluation.

    input_shape: (height, width, channels), or as `InputShape` says.
    """
    return sum(params_by_layer(model, input_shape).values())


def count_macs(model: nn.Module | Network, input_shape: InputShape) -> int:
    """Multiply-adds of convolutions and matrix products for one image in evaluation.

    Padding counts as computed, as in the papers and torchvision; zeros that a transposed
    convolution inserts do not. Loops count every iteration, a conditional its most expensive
    branch. input_shape: (height, width, channels), or as `InputShape` says: with inputs given as
    the network gets them, the count is that of all their examples.
    Raises InputError, naming them, if some are not counted: in a loop whose length depends on its
    data, in a kernel that JAX cannot inspect, or in a primitive that is made of products, such as
    fft or cholesky. `cost` counts the others.
    """
    return sum(macs_by_layer(model, input_shape).values())


def params_by_layer(model: nn.Module | Network, input_shape: InputShape) -> dict[str, int]:
    """Trainable parameters of each layer that has some, by path; "" for the model's own."""
    return count_params_by_layer(shapes_of_variables(model, input_shapes(input_shape)))


def macs_by_layer(model: nn.Module | Network, input_shape: InputShape) -> dict[str, int]:
    """What `count_macs` counts, by the path of the module, in forward order.

    A scanned stage is one entry that counts all its runs; layers without convolution or matrix
    product are absent.
    """
    traced = list(steps(computation(model, input_shapes(input_shape)).jaxpr.jaxpr))
    if missing := uncounted_operations(traced):
        raise InputError(
            f"{name_of(model)} has multiply-adds that are not counted: {'; '.join(missing)}; "
            "use deepjax.analysis.cost, which counts the others and lists these"
        )
    return count_macs_by_layer(traced)


def count_params_by_layer(variables: Any) -> dict[str, int]:
    """`params_by_layer` of given variables, or of their shapes."""
    counts: dict[str, int] = defaultdict(int)
    for path, leaf in flatten_dict(variables.get("params", {})).items():
        size = sum(math.prod(array.shape) for array in jax.tree.leaves(leaf))
        counts["/".join(path[:-1])] += size
    return dict(counts)


def count_macs_by_layer(traced: Iterable[Step]) -> dict[str, int]:
    """`macs_by_layer` of a traced computation, without what `uncounted_operations` names."""
    counts: dict[str, int] = defaultdict(int)
    for step in traced:
        macs = 0 if step.unbounded else step.times * equation_macs(step.equation)
        if macs:
            counts[step.path] += macs
    return dict(counts)


def uncounted_operations(traced: Iterable[Step]) -> tuple[str, ...]:
    """What multiplies, or may, but is not counted, with its layer: "fft of mixer"."""
    missing = [step for step in traced if is_missing(step)]
    return tuple(
        dict.fromkeys(
            f"{step.equation.primitive.name} of {describe_layer(step.path, step.unbounded)}"
            for step in missing
        )
    )


def describe_layer(path: str, unbounded: bool) -> str:
    """A layer for display, and that the number of its runs is unknown."""
    note = ", in a while loop whose length depends on its data" if unbounded else ""
    return (path or "the network itself") + note
