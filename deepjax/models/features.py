"""Feature extraction: outputs of named stages of a network, and its pooled embedding."""

from collections.abc import Mapping, Sequence
from typing import Any

from flax import linen as nn
from jax import Array

from deepjax.errors import InputError, require, unknown_name_error


def features(
    model: nn.Module, variables: Mapping[str, Any], images: Array, names: Sequence[str] = ()
) -> dict[str, Array]:
    """The outputs of the named stages (default: all), in evaluation mode; can be jitted.

    images: (batch, height, width, channels) -> {"stem": (batch, h, w, c), "stage1": ...,
    "pooled": (batch, c)}. "pooled" is what the classifier takes: the average of the last map, of
    VGG the output of its second linear layer. A network of your own marks a stage by
    `self.sow("features", "stage1", x)`. Under jit the layers after the last named stage are not
    computed. Raises InputError for an unknown name, and for a network that marks no stage.
    """
    require(not isinstance(names, str), "names", names, f"a list of stages, such as [{names!r}]")
    variables = {name: tree for name, tree in variables.items() if name != "features"}
    output: Any = model.apply(variables, images, train=False, mutable=["features"])
    stages: dict[str, Array] = {
        name: value[-1] if isinstance(value, tuple) else value
        for name, value in output[1].get("features", {}).items()
    }
    if not stages:
        raise InputError(
            f"{type(model).__name__} marks no stage; allowed: a network of deepjax, or one that "
            'calls self.sow("features", NAME, x)'
        )
    for name in names:
        if name not in stages:
            raise unknown_name_error(f"stage of {type(model).__name__}", name, stages)
    return {name: stages[name] for name in names or stages}
