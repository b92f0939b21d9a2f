"""The plan of a run, computed once: number of steps, ends of epochs, image sizes."""

import dataclasses

from deepjax.training.config import TrainConfig, size_at


@dataclasses.dataclass(frozen=True)
class TrainPlan:
    """The steps of a run; `step` counts from 0, `done` is a number of steps done."""

    total_steps: int
    steps_per_epoch: int
    image_sizes: tuple[int, ...]
    """Image sizes in pixels of equal parts of the training."""

    def is_epoch_end(self, done: int) -> bool:
        """Whether an epoch, or the training, ends after so many steps."""
        return done > 0 and (done % self.steps_per_epoch == 0 or done == self.total_steps)

    def image_size(self, step: int) -> int:
        """Pixels a side of the images of a step."""
        return size_at(self.image_sizes, step, self.total_steps)

    def steps_left_of_part(self, step: int) -> int:
        """The number of steps, from this one on, until the image size may change."""
        parts = len(self.image_sizes)
        part = min(step * parts // self.total_steps, parts - 1)
        return -(-(part + 1) * self.total_steps // parts) - step


def make_plan(config: TrainConfig) -> TrainPlan:
    """The plan of a configuration; raises InputError as its properties do."""
    return TrainPlan(
        total_steps=config.total_steps,
        steps_per_epoch=config.steps_per_epoch,
        image_sizes=config.data.progressive_sizes or (config.input_shape[0],),
    )
