"""A study of seconds: two networks of dense layers, a measurement, claims and their controls."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from deepjax.study.arms.arm import Arm, TrainedArm
from deepjax.study.arms.rates import SelectedRate
from deepjax.study.claim import SAME_LEVEL, Claim, Control, ExactClaim
from deepjax.study.preset import Preset
from deepjax.study.quantity import error, measured
from deepjax.study.report.study_figures import error_rows
from deepjax.study.stats.rules import above, within
from deepjax.study.study import SeedContext, Study, trained_arms
from deepjax.training import open_run

TRAINING = {"steps": 12, "batch_size": 240, "warmup_epochs": 0.0}


class Dense(nn.Module):
    """Dense layers of 16 features."""

    layers: int
    num_classes: int = 10
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        x = jnp.asarray(images.reshape(len(images), -1), self.dtype)
        for i in range(self.layers):
            x = nn.relu(nn.Dense(16, dtype=self.dtype, name=f"dense{i}")(x))
        return nn.Dense(self.num_classes, dtype=jnp.float32, name="head")(x)


DEEP, SHALLOW = partial(Dense, 3), partial(Dense, 1)
ARMS = {
    "deep": Arm("own/deep", DEEP),
    "shallow": Arm("own/shallow", SHALLOW),
    "shallow_again": Arm("own/shallow", SHALLOW, rate_of="shallow", other_seeds=True),
}


def measure(context: SeedContext) -> dict[str, Any]:
    """The steps of each run, and the seed."""
    context.progress(0, 2)
    run = open_run(context.runs["deep"], make=DEEP)
    return {"steps": {"deep": run.step}, "seed": context.seed}


CLAIMS = (
    Claim("Deep is worse.", error("deep") - error("shallow"), above(0), interest=1.0),
    Claim("The difference is a number.", error("deep") - error("shallow"), above(-1e4), gate=False),
    Claim("There are twelve steps.", measured("steps", "deep"), within(11, 13), interest=1.0,
          headline=True, gate=False, measures=("deep",)),
    ExactClaim("Two is more than one.", "2 > 1", lambda: (2 > 1, "2 and 1")),
    Control(
        "A/A: shallow is worse than itself under other seeds.",
        error("shallow") - error("shallow_again"), above(0), gate=False,
        expected=("inconclusive",), level=SAME_LEVEL,
    ),
)  # fmt: skip
STUDY = Study(
    name="toy",
    title="Is two more than one?",
    lecture="a toy",
    arms=ARMS,
    presets={
        "quick": Preset("digits", 2, judged=False, training=TRAINING, rate=0.8),
        "small": Preset("digits", 2, training=TRAINING, grid=(0.2, 0.4, 0.8)),
    },
    measure=measure,
    claims=CLAIMS,
    figures=(error_rows("rows", "Two networks.", list(ARMS), claim="Deep is worse."),),
    method="Little was done.",
    limits="Nothing is shown.",
)


def trained_arm(name: str, preset: str = "quick", **changes: Any) -> TrainedArm:
    """An arm of the study as it is trained, with changed fields."""
    arms = trained_arms(STUDY, STUDY.presets[preset], dict.fromkeys(ARMS, SelectedRate(0.1)))
    return dataclasses.replace(arms[name], **changes)
