"""Feature extraction: outputs of named stages of any network in the table."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax import linen as nn
from jax import Array

from deepjax.errors import require, unknown_name_error


def features(
    model: nn.Module, variables: Mapping[str, Any], images: Array, names: Sequence[str] = ()
) -> dict[str, Array]:
    """The outputs of the named stages (default: all), in evaluation mode; can be jitted.

    images: (batch, height, width, channels) -> {"stem": (batch, h, w, c), "stage1": ...}. Under jit
    the layers after the last named stage are not computed. Raises InputError for an unknown name.
    """
    require(not isinstance(names, str), "names", names, f"a list of stages, such as [{names!r}]")
    output: Any = model.apply(variables, images, mutable=["features"])
    stages: dict[str, Array] = dict(output[1].get("features", {}))
    for name in names:
        if name not in stages:
            raise unknown_name_error(f"stage of {type(model).__name__}", name, stages)
    return {name: stages[name] for name in names or stages}


def feature_shapes(model: nn.Module, input_shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Shapes of the stages' outputs for one image, by abstract evaluation.

    input_shape: (height, width, channels).
    """
    images = jax.ShapeDtypeStruct((1, *input_shape), "float32")
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    order: list[str] = []

    def run(variables: Any, images: Array) -> dict[str, Array]:
        stages = features(model, variables, images)
        order.extend(stages)  # JAX hands dicts back in alphabetical order
        return stages

    stages = jax.eval_shape(run, variables, images)
    return {name: stages[name].shape[1:] for name in order}
