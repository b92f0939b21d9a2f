"""Training on images that stay on the devices: the data, and the program of several steps."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from deepjax.data import EncodedSplit, Split
from deepjax.errors import InputError
from deepjax.training.config import TrainConfig
from deepjax.training.distributed.sharding import Partitioner
from deepjax.training.memory import (
    StepCost,
    check_fits,
    compile_step,
    largest_cost,
    memory_hint,
)
from deepjax.training.step.resident import make_resident_step
from deepjax.training.step.step import TrainStep

MOST_STEPS = 512  # of one program: their ids and metrics are on the devices


@dataclasses.dataclass(frozen=True)
class ResidentTraining:
    """The training images on the devices, and the program of several steps on them."""

    data: dict[str, jax.Array]
    take_by_size: Mapping[int, Callable[..., Any]]
    """For each image size: (state, data, ids (capacity, batch), count) -> (state, metrics of each
    step)."""
    batch: Callable[..., Any]
    """(data, ids (batch,)) -> the batch."""
    capacity: int


def require_arrays(config: TrainConfig, split: Split | EncodedSplit) -> Split:
    """The training images as arrays. Raises InputError for photographs."""
    if isinstance(split, EncodedSplit):
        raise InputError(
            f"resident is True; the images of {config.dataset} are decoded as they are read: "
            "drop --resident"
        )
    return split


def compile_resident(
    config: TrainConfig,
    steps: Mapping[int, TrainStep],
    split: Split,
    partitioner: Partitioner,
    state: Any,
) -> tuple[ResidentTraining, StepCost]:
    """Put the images on the devices and compile the programs; their cost is that of a step.

    steps: by image size. state: shapes. Raises InputError where the images and a step exceed the
    memory of a device.
    """
    capacity = min(MOST_STEPS, config.steps_per_epoch)
    data = {
        name: partitioner.put_replicated(values)
        for name, values in (("image", split.images), ("label", split.labels))
    }
    ids = jax.ShapeDtypeStruct((capacity, config.batch_size), jnp.int32)
    count = jax.ShapeDtypeStruct((), jnp.int32)
    hint = memory_hint(config.batch_size, config.grad_accum_steps, config.remat)
    advice = f"training without resident, or {hint}"
    programs: dict[int, Callable[..., Any]] = {}
    costs = []
    for size, step in steps.items():
        with jax.set_mesh(partitioner.mesh):  # bn_scope="replica" asks it for the number of devices
            programs[size], cost = compile_step(
                partitioner.compile_resident(make_resident_step(step), state),
                state, data, ids, count,
                advice=advice,
            )  # fmt: skip
        check_fits(cost, advice)
        costs.append(cost)
    resident = ResidentTraining(data, programs, partitioner.compile_gather(), capacity)
    return resident, largest_cost(costs)
