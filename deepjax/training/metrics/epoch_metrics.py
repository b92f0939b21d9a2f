"""The row of an epoch, from the sums that the train step keeps on the devices."""

from collections.abc import Sequence
from typing import Any

import jax

from deepjax.training.build import CompiledTraining
from deepjax.training.metrics.writer import Row
from deepjax.training.step.state import TrainState


def epoch_row(state: TrainState, compiled: CompiledTraining, times: Row) -> Row:
    """Running means of the epoch that ends with this state, its learning rate and gradient norms.

    `times`: entries that differ between two equal runs.
    """
    totals = jax.device_get(state.totals)
    done = int(state.step)
    steps, images = max(1.0, float(totals["steps"])), max(1.0, float(totals["images"]))

    def means(sums: Any) -> dict[str, float]:
        return {
            "running_loss": float(sums["loss"]) / steps,
            "running_error": float(sums["errors"]) / images,
        }

    row = {"kind": "epoch", "step": done, "epoch": done / compiled.plan.steps_per_epoch} | means(
        totals
    )
    row["learning_rate"] = float(state.learning_rate * compiled.schedule(done - 1))
    row["gradient_norms"] = mean_by_layer(totals["gradient_norms"], compiled.layers, steps)
    row |= times
    if totals["auxiliary"]:
        row["auxiliary"] = {head: means(sums) for head, sums in totals["auxiliary"].items()}
    return row


def mean_by_layer(
    sums: dict[str, Any], layers: Sequence[str], steps: float = 1.0
) -> dict[str, float]:
    """Means over steps, in the order of `layers`."""
    return {layer: float(sums[layer]) / steps for layer in layers}
