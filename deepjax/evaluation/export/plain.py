"""A network without its wrappers of training, and variables with the same logits."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from deepjax.errors import require
from deepjax.models import unstack_blocks
from deepjax.models.preact import PreActResNet
from deepjax.models.resnet import ResNet
from deepjax.models.stochastic_depth import StochasticDepth

Variables = Mapping[str, Any]


def without_wrappers(model: nn.Module, variables: Variables) -> tuple[Any, Variables]:
    """The network itself, unrolled, with variables of the same logits in evaluation.

    Raises InputError for stochastic depth in a network whose branches cannot be scaled.
    """
    if isinstance(model, StochasticDepth):
        model, variables = model.network, fold_survival(model, variables)
    if getattr(model, "scan", False):
        model, variables = model.clone(scan=False), unstack_blocks(variables)
    return model, variables


def fold_survival(model: StochasticDepth, variables: Variables) -> Variables:
    """Variables with which the network alone computes the logits of stochastic depth.

    In evaluation each branch is multiplied by its probability of survival (Huang et al. 2016, eq.
    5); here its last layer, which is linear, is. Raises InputError for other networks than ResNets.
    """
    network = model.network
    require(
        isinstance(network, ResNet | PreActResNet),
        "drop_path",
        round(1 - model.survival, 6),
        f"0 for the export of {type(network).__name__}, whose residual branches cannot be scaled",
    )
    params: dict[tuple[str, ...], Any] = flatten_dict(dict(variables["params"]))
    blocks = [
        f"stage{stage}_block{block}"
        for stage, count in enumerate(network.stages, 1)
        for block in range(1, count + 1)
    ]
    for place, block in enumerate(blocks, 1):
        layers = sorted({path[1] for path in params if path[0] == block})
        is_last = "norm" if isinstance(network, ResNet) and network.norm != "none" else "conv"
        last = [layer for layer in layers if re.fullmatch(rf"{is_last}\d", layer)][-1]
        survives = np.float32(1 - place / len(blocks) * (1 - model.survival))
        for path in params:
            if path[:2] == (block, last):
                params[path] = np.asarray(params[path]) * survives
    return {**variables, "params": unflatten_dict(params)}
