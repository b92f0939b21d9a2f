"""The loss surface around a network in a few numbers: how much of a random plane is concave, and the Hessian's extremes.

Li et al. 2018 (arXiv:1712.09913), sections 4 and 6.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from flax import linen as nn

from deepjax.analysis import loss_plane, random_direction, spectral_density
from deepjax.analysis.core.module import Batch
from deepjax.analysis.landscape.plane import LossPlane
from deepjax.analysis.plots import STYLE, save
from deepjax.models.layers.scanned_blocks import stack_blocks


def surface(
    model: nn.Module,
    variables: Mapping[str, Any],
    batch: Batch,
    seed: int,
    points: int = 11,
    steps: int = 30,
) -> dict[str, Any]:
    """Plain numbers: the extreme eigenvalues, |smallest / largest|, and loss and concave share on a plane.

    The loss is that of training: batch norm uses the batch's own statistics, at every point of the plane too. The plane has two
    random directions, each filter as long as the network's own, from -1 to 1. Blocks of a stage are scanned, to compile fast.
    """
    if hasattr(model, "scan"):
        model, variables = model.clone(scan=True), stack_blocks(variables)
    stacked = {name: (0, -1) for name in variables["params"] if name.endswith("_blocks")}
    across, up = (
        random_direction(variables, key, axes=stacked)
        for key in jax.random.split(jax.random.key(seed))
    )
    grid = np.linspace(-1, 1, points)
    plane = loss_plane(model, variables, batch, across, up, grid=(grid, grid), bn="batch")
    density = spectral_density(
        model, variables, batch, steps=steps, probes=1, bn="batch", seed=seed
    )
    largest, smallest = density.lambda_max, density.lambda_min
    return {
        "largest": largest,
        "smallest": smallest,
        "ratio": abs(min(smallest, 0.0) / largest),
        "concave": plane.concave_fraction,
        "examples": plane.examples,
        "grid": grid.tolist(),
        "loss": plane.loss.tolist(),
    }


def planes_figure(panels: Sequence[tuple[str, Mapping[str, Any]]], path: Path) -> Path:
    """Contours of the loss on each plane; each panel has a title and what `surface` gave. Written to `path`."""
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(1, len(panels), figsize=(5.4 * len(panels), 4.6), squeeze=False)
        for ax, (title, found) in zip(axes[0], panels, strict=True):
            x = np.array(found["grid"])
            LossPlane(
                "batch", True, found["examples"], x, x, np.array(found["loss"]), None, None
            ).plot(ax)
            ax.set(title=title, xticks=(-1, -0.5, 0, 0.5, 1), yticks=(-1, -0.5, 0, 0.5, 1))
    return save(figure, path)
