"""Parameter and multiply-add counts, from the traced computation: nothing is run."""

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from deepjax.analysis.core.instrument import instrument
from deepjax.analysis.core.mode import EVAL, Mode, require_mode
from deepjax.analysis.core.params import by_path, path_string
from deepjax.analysis.jaxpr.module_paths import (
    Step,
    computation,
    is_missing,
    shapes_of_variables,
    steps,
)
from deepjax.analysis.jaxpr.products import equation_macs
from deepjax.analysis.network.input_shapes import InputShape, input_shapes
from deepjax.analysis.network.module import Model, name_of
from deepjax.errors import InputError


@instrument
def count_params(model: Model, input_shape: InputShape) -> int:
    """Number of trainable parameters, in every mode, by abstract evaluation.

    input_shape: (height, width, channels), or as `InputShape` says. A network of `from_function`
    needs its `params=`.
    """
    return sum(params_by_layer(model, input_shape).values())


@instrument
def count_macs(model: Model, input_shape: InputShape, *, mode: Mode = EVAL) -> int:
    """Multiply-adds of convolutions and matrix products for one image, in the forward pass.

    Padding counts as computed, as in the papers and torchvision; zeros that a transposed
    convolution inserts do not. Loops count every iteration, a conditional its most expensive
    branch. input_shape: (height, width, channels), or as `InputShape` says: with inputs given as
    the network gets them, the count is that of all their examples. mode: which forward pass;
    `Ghost(k)` counts like TRAIN.
    Raises InputError, naming them, if some are not counted: in a loop whose length depends on its
    data, in a kernel that JAX cannot inspect, or in a primitive that is made of products, such as
    fft or cholesky. `cost` counts the others.
    """
    return sum(macs_by_layer(model, input_shape, mode=mode).values())


@instrument
def params_by_layer(model: Model, input_shape: InputShape) -> dict[str, int]:
    """Trainable parameters of each layer that has some, by path; "" for the model's own.

    Of a function, by the path of the subtree that they are in.
    """
    return count_params_by_layer(shapes_of_variables(model, input_shapes(model, input_shape)))


@instrument
def macs_by_layer(model: Model, input_shape: InputShape, *, mode: Mode = EVAL) -> dict[str, int]:
    """What `count_macs` counts, by the path of the module, in forward order.

    A scanned stage is one entry that counts all its runs; layers without convolution or matrix
    product are absent. All products of a function belong to "".
    """
    inputs, train = input_shapes(model, input_shape), require_mode(mode).train
    traced = list(steps(computation(model, inputs, train=train).jaxpr.jaxpr))
    if missing := uncounted_operations(traced):
        raise InputError(
            f"{name_of(model)} has multiply-adds that are not counted: {'; '.join(missing)}; "
            "use deepjax.analysis.cost, which counts the others and lists these"
        )
    return count_macs_by_layer(traced)


def count_params_by_layer(variables: Any) -> dict[str, int]:
    """`params_by_layer` of given variables, or of their shapes."""
    counts: dict[str, int] = defaultdict(int)
    for path, leaf in by_path(variables["params"]).items():
        counts[path_string(path[:-1])] += math.prod(leaf.shape)
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
