"""The gradient noise scale in the course of a training (McCandlish et al. 2018, arXiv:1812.06162, appendix A.1)."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from deepjax.analysis import noise_scale
from deepjax.study.targets import LossOf, iterate_training
from deepjax.training import CompiledTraining, TrainConfig


@dataclasses.dataclass(frozen=True)
class NoiseScaleEstimator:
    """How the noise scale is estimated: from `count` batches of `big` images, and their shares of `small`."""

    count: int = 8
    small: int = 16
    big: int = 256

    def scale(
        self, programs: CompiledTraining, params: Any, data: Any, rng: np.random.Generator
    ) -> float:
        """The noise scale of the gradient of these images, which are drawn with replacement; NaN where no signal was found."""
        ids = [rng.integers(len(data["label"]), size=self.big) for _ in range(self.count)]
        batches = [{name: array[each] for name, array in data.items()} for each in ids]
        return noise_scale(programs.model, {"params": params}, batches, small=self.small).scale


def noise_along(
    at: Sequence[int],
    programs: CompiledTraining,
    config: TrainConfig,
    loss_of: LossOf,
    data: Any,
    look: NoiseScaleEstimator,
) -> dict[str, list[float]]:
    """Loss and noise scale at these steps of one training: {"at", "losses", "scales"}."""
    rng = np.random.default_rng(config.seed)
    losses, scales = [], []
    for step, state in iterate_training(programs, config):
        if step in at:
            losses.append(loss_of(state.params))
            scales.append(look.scale(programs, state.params, data, rng))
        if step == max(at):
            break
    return {"at": list(at), "losses": losses, "scales": scales}
