"""Why a step was bad: labels outside the classes, or the first non-finite layer or parameter."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from deepjax.analysis import TRAIN, first_nonfinite_layer
from deepjax.analysis.core.params import Path, by_path, path_string
from deepjax.data.augment.basic import normalize, resize
from deepjax.training.build import CompiledTraining, step_options
from deepjax.training.step.state import TrainState


def explain(
    programs: CompiledTraining, state: TrainState, batch: dict[str, np.ndarray], ids: np.ndarray
) -> str:
    """The defect of the step after `state`, in a line. batch: the global one, ids: (batch,)."""
    labels, classes = batch["label"], programs.dataset.num_classes
    outside = np.flatnonzero((labels < 0) | (labels >= classes))
    if outside.size:
        bad = f"{_listed(ids[outside])} have {_listed(labels[outside])}"
        return f"labels outside 0 to {classes - 1} ({bad})"
    if any(
        np.isnan(leaf).any() or np.isinf(leaf).any()
        for leaf in jax.tree.leaves(jax.device_get(state.params))
    ):
        first = _first_leaf(programs, state.params)
        return f"parameters that are not finite before it, first in {first}"
    size = step_options(
        programs.config, size=programs.config.shape_at(int(state.step))[0]
    ).image_size
    images = resize(normalize(jnp.asarray(batch["image"]), programs.dataset), size)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    layer = first_nonfinite_layer(programs.model, variables, images, mode=TRAIN)
    if layer is not None:
        return f"an output that is not finite, first of {layer or 'the network'}"
    return "finite outputs: the loss, a gradient or a batch statistic is not finite, or jumped"


def _first_leaf(programs: CompiledTraining, params: Any) -> str:
    """The first non-finite parameter in the order of the forward pass."""
    order = _call_order(programs.model, programs.config.input_shape)
    bad = [
        path
        for path, leaf in by_path(jax.device_get(params)).items()
        if not np.isfinite(leaf).all()
    ]
    return path_string(min(bad, key=lambda path: order.get(path[:-1], len(order))))


def _call_order(model: nn.Module, input_shape: tuple[int, ...]) -> dict[Path, int]:
    """Path of each module -> its position in the forward pass, by abstract evaluation."""
    order: dict[Path, int] = {}

    def note(
        function: Any, arguments: Any, keywords: Any, context: nn.module.InterceptorContext
    ) -> Any:
        output = function(*arguments, **keywords)
        order.setdefault(context.module.path, len(order))
        return output

    with nn.intercept_methods(note):
        images = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
        jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)
    return order


def _listed(values: np.ndarray, most: int = 4) -> str:
    shown = ", ".join(str(value) for value in values[:most].tolist())
    return shown + (", ..." if len(values) > most else "")
