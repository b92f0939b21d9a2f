"""How a study is run: on which data, with how many seeds, how long."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class Preset:
    """How a study is run: on which data, with how many seeds, how long."""

    dataset: str
    seeds: int
    judged: bool = True
    """Whether verdicts are given; a quick preset shows figures and numbers only."""
    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Options of `TrainConfig` that all arms have in common."""
    sizes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Other parameters of the study: numbers of images, of points, of steps."""
    rate: float = 0.0
    """Learning rate of all arms, where none are selected by pilots."""
    select: Literal["train", "validation"] = "train"
    """The error by which pilots select a rate: the training error, for studies of optimisation; or
    that on training images that pilots hold out, for studies of accuracy on test images."""
    pilots: str = ""
    """The study whose pilots select the rates; default: this one. For studies that share arms."""
    grid: tuple[float, ...] = (0.05, 0.1, 0.2)
    """Where the pilots begin; the grid is extended by factors of 2 until the best is interior."""
    grids: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    """Other beginnings for some arms, by name."""
    arms: tuple[str, ...] = ()
    """The arms of this preset, if not all; claims on others are left out."""
