"""What the blocks of CIFAR networks do, plain or residual: the signal, their responses, and what is lost without one."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax import Array

from deepjax.analysis import lesions, path_lengths, signal_propagation, trace
from deepjax.analysis.core.module import Batch, init_variables
from deepjax.models.preact import PreActResNet

Variables = Mapping[str, Any]


def tower(blocks: int, normed: bool, width: int = 16) -> PreActResNet:
    """One stage of pre-activated residual blocks that all keep the shape of their input, with batch norm or without norm."""
    norm = "batch" if normed else "none"
    return PreActResNet(
        stages=(blocks,),
        block="basic",
        num_classes=10,
        width=width,
        stem_width=width,
        stem="cifar",
        norm=norm,
    )


def signal_growth(model: PreActResNet, key: Array, inputs: Array, draws: int = 4) -> dict[str, Any]:
    """Mean square of each block's output as drawn; its factor per block; and the power of depth that it goes with from block 4 on.

    The mean square is the channels' variance and squared mean together, of which theory speaks. A factor and
    an exponent for each draw of the weights; of the signal the geometric mean over draws.
    """
    squares = []
    for each in jax.random.split(key, draws):
        blocks = signal_propagation(model, init_variables(model, each, inputs.shape), inputs).blocks
        squares.append([block.variance + block.squared_mean for block in blocks])
    depth, logs = np.arange(1, len(squares[0]) + 1), np.log(squares).T
    factors, exponents = (
        np.exp(np.polyfit(depth, logs, 1)[0]),
        np.polyfit(np.log(depth[3:]), logs[3:], 1)[0],
    )
    return {
        "signal": np.exp(logs.mean(1)).tolist(),
        "factor": factors.tolist(),
        "exponent": exponents.tolist(),
    }


def block_names(model: Any) -> list[str]:
    """Paths of the blocks of a `deepjax.models.resnet.ResNet`, unrolled, in the order of the forward pass."""
    return [
        f"stage{stage}_block{i}"
        for stage, count in enumerate(model.stages, 1)
        for i in range(1, count + 1)
    ]


def lesion_rises(model: Any, variables: Variables, batch: Batch) -> list[float]:
    """How much the error rises without each block that keeps its input's shape, in points: its input is passed on in its place.

    Of a residual block that is what deleting its branch comes to, for its input has been through a ReLU.
    """
    keeping = [
        name
        for name in block_names(model)
        if name == "stage1_block1" or not name.endswith("_block1")
    ]
    found = lesions(model, variables, batch, modules=keeping)
    return [100 * lesion.error_change for lesion in found.blocks]


def responses(model: Any, variables: Variables, batch: Batch) -> list[float]:
    """Standard deviation of each 3x3 layer's output after batch norm, before the sum and the ReLU (He et al. 2015, Figure 7)."""
    layers = ["stem_norm", *(f"{block}/norm{i}" for block in block_names(model) for i in (1, 2))]
    return [row.std for row in trace(model, variables, batch, layers=layers).layers]


def gradient_paths(
    model: Any, variables: Variables, batch: Batch, samples: int, seed: int
) -> dict[str, Any]:
    """Share of the gradient by the number of branches on the path, and its mean length over that of all paths."""
    found = path_lengths(model, variables, batch, samples=samples, seed=seed)
    return {
        "share": [row.fraction for row in found.lengths],
        "ratio": found.mean_length / (len(found.sums) / 2),
    }
