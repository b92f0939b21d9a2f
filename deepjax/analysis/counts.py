"""Cost of a network from its traced computation: nothing is run, nothing is looked up."""

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict
from jax.extend.core import JaxprEqn

from deepjax.analysis.computation import Step, computation, steps
from deepjax.analysis.forward import initialise


def count_params(model: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Number of trainable parameters, by abstract evaluation. input_shape: (height, width, channels)."""
    return sum(params_by_layer(model, input_shape).values())


def count_macs(model: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Multiply-adds of convolutions and matrix products for one image in evaluation, from the traced computation.

    Padding counts as computed, as the papers and torchvision count it. input_shape: (height, width, channels).
    """
    return sum(macs_by_layer(model, input_shape).values())


def params_by_layer(model: nn.Module, input_shape: tuple[int, ...]) -> dict[str, int]:
    """Trainable parameters of each layer that has some, by its path ("stage1_block1/conv1"; "" for the model's own)."""
    images = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    return params_of(jax.eval_shape(lambda images: initialise(model, images), images))


def macs_by_layer(model: nn.Module, input_shape: tuple[int, ...]) -> dict[str, int]:
    """What `count_macs` counts, by the path of the module that it is part of, in the order of the forward pass.

    A scanned stage is one entry, counted as often as it runs; layers without convolution or matrix product are absent.
    """
    return macs_of(steps(computation(model, input_shape).jaxpr.jaxpr))


def params_of(variables: Any) -> dict[str, int]:
    """`params_by_layer` of variables, or of their shapes, that are at hand."""
    counts: dict[str, int] = defaultdict(int)
    for path, leaf in flatten_dict(variables.get("params", {})).items():
        counts["/".join(path[:-1])] += sum(math.prod(array.shape) for array in jax.tree.leaves(leaf))  # a leaf may be boxed
    return dict(counts)


def macs_of(traced: Iterable[Step]) -> dict[str, int]:
    """`macs_by_layer` of a computation that is traced already."""
    counts: dict[str, int] = defaultdict(int)
    for step in traced:
        macs = _equation_macs(step.equation)
        if macs:
            counts[step.path] += step.times * macs
    return dict(counts)


def _equation_macs(equation: JaxprEqn) -> int:
    if equation.primitive.name == "conv_general_dilated":
        kernel = _shape(equation.invars[1])
        out_features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
        return math.prod(_shape(equation.outvars[0])) * math.prod(kernel) // out_features
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return math.prod(_shape(equation.outvars[0])) * math.prod(_shape(equation.invars[0])[axis] for axis in contracted)
    return 0


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape
