"""The task of throughput.py: network, images, labels, optimizer's constants. NumPy alone."""

import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np

MOMENTUM, DECAY, SMOOTHING, HEADS = 0.9, 1e-4, 0.1, 0.3
WEIGHTS = "weights.npz"
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of a pixel, per channel


@dataclasses.dataclass(frozen=True)
class Task:
    """One network at one size; training has dropout off, since each framework draws its own."""

    model: str
    size: int
    batch_size: int
    classes: int
    precision: Literal["float32", "bfloat16"]
    inference: bool
    learning_rate: float
    steps: int  # of a block
    checked: int  # steps whose losses are compared before anything is timed
    folder: str  # that holds weights.npz, under torchvision's names

    def batch(self) -> tuple[np.ndarray, np.ndarray]:
        """Random images, uint8 (batch, height, width, 3), and labels, int32."""
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (self.batch_size, self.size, self.size, 3), np.uint8)
        return images, rng.integers(0, self.classes, self.batch_size).astype(np.int32)

    def weights(self) -> dict[str, np.ndarray]:
        """Under torchvision's names; waits for the process that draws them."""
        while not self.has_weights():
            time.sleep(0.1)
        with np.load(Path(self.folder) / WEIGHTS) as file:
            return dict(file)

    def has_weights(self) -> bool:
        """Whether they are drawn."""
        return (Path(self.folder) / WEIGHTS).exists()

    def keep_weights(self, tensors: dict[str, Any]) -> None:
        """Write them, in one piece for those who wait."""
        path = Path(self.folder) / WEIGHTS
        part = path.with_name(f"{os.getpid()}.npz")
        np.savez(part, **tensors)
        part.replace(path)


def given() -> Task:
    """The task on the command line."""
    return Task(**json.loads(sys.argv[1]))
