"""Does a residual network generalise better when its branches are dropped at random in training?

Huang et al. 2016, "Deep networks with stochastic depth" (arXiv:1603.09382).

python experiments/stochastic_depth.py                 # a minute on two cores, no verdicts
python experiments/stochastic_depth.py --preset small  # Fashion-MNIST at 14x14: 5 minutes
python experiments/stochastic_depth.py --preset small --pilots    # select rates first
"""

from functools import partial
from typing import Any

import numpy as np

from deepjax.command_line import parse, run_command
from deepjax.models import cifar_stages
from deepjax.models.stochastic_depth import stochastic_depth
from deepjax.study.arms.arm import Arm
from deepjax.study.claim import CHANGED, SAME_LEVEL, TEST, TRAIN, Claim, Control
from deepjax.study.ladder import LADDER, ladder_arm
from deepjax.study.preset import Preset
from deepjax.study.quantity import error, log, measured
from deepjax.study.report.study_figures import error_lines, error_rows, value_rows
from deepjax.study.runner import run_study
from deepjax.study.stats.rules import above, below
from deepjax.study.study import Options, SeedContext, Study
from deepjax.training.metrics.metrics_log import METRICS, read_rows

SURVIVAL, FEW = 0.5, 4000  # survival probability of the last block; number of images

# Networks: one of 20 layers, complete and with stochastic depth, on all images and on a quarter of
# them for as many steps; and one of 8 layers whose branches survive with probability 1.


def stochastic(depth: int, survival: float, **options: Any) -> Arm:
    """A residual network with stochastic depth."""
    make = partial(stochastic_depth, "cifar_resnet20", survival, stages=cifar_stages(depth))
    return Arm(f"own/cifar_resnet{depth}_survival{survival:g}", make, **options)


ARMS = {
    "stochastic": stochastic(20, SURVIVAL),
    "stochastic_few": stochastic(20, SURVIVAL, rate_of="stochastic", part=f"[:{FEW}]"),
    "complete": ladder_arm("resnet", 20),
    "complete_few": ladder_arm("resnet", 20, rate_of="complete", part=f"[:{FEW}]"),
    "resnet8": ladder_arm("resnet", 8),
    "resnet8_survival1": stochastic(8, 1.0, rate_of="resnet8", other_seeds=True),
}

# Measurements.


def first_over_head(norms: dict[str, float]) -> float:
    """The gradient norm of the first convolution over that of the classifier, the last layer.

    Both grow with the loss, their ratio does not.
    """
    layers = list(norms.values())
    return layers[0] / layers[-1]


def measure(context: SeedContext) -> dict[str, Any]:
    """By network: the ratio of gradient norms, its geometric mean over epochs."""
    found = {}
    for arm in ("stochastic", "complete"):
        epochs = [row for row in read_rows(context.runs[arm] / METRICS) if row["kind"] == "epoch"]
        ratios = [first_over_head(row["gradient_norms"]) for row in epochs]
        found[arm] = float(np.exp(np.mean(np.log(ratios))))
    return {"first over classifier": found}


# Rules, fixed before the runs. Huang et al. 2016, Table 1, gain 1.2 points on CIFAR-10, from 6.4 %,
# with 110 layers and 500 epochs; GAIN is under half of it.
GAIN = 0.5


def gain(images: str = "") -> Any:
    """The test error that stochastic depth adds; below 0, it helps."""
    return error(f"stochastic{images}") - error(f"complete{images}")


CLAIMS = (
    Claim(
        f"With {FEW:,} images stochastic depth lowers the test error.",
        gain("_few"), below(0), TEST, interest=GAIN, exploratory=CHANGED,
    ),
    Claim(
        "With 16,000 images stochastic depth lowers the test error.",
        gain(), below(0), TEST, interest=GAIN, exploratory=CHANGED,
    ),
    Claim(
        "The fewer the images, the better stochastic depth does relative to the complete network "
        "on test images.",
        gain("_few") - gain(), below(0), TEST, interest=GAIN,
    ),
    Claim(
        "With 16,000 images stochastic depth raises the training error.",
        gain(), above(0), TRAIN, interest=GAIN,
    ),
    Claim(
        "With stochastic depth the gradient of the first convolution is larger relative to the "
        "classifier's.",
        (
            log(measured("first over classifier", "stochastic"))
            - log(measured("first over classifier", "complete"))
        ).named("log of the ratio of both networks"),
        above(0), interest=0.1, exploratory=CHANGED, measures=("stochastic", "complete"),
    ),
    Control(
        "A/A: the residual network of 8 layers is worse than the same one, whose branches survive "
        "with probability 1, under other seeds.",
        error("resnet8") - error("resnet8_survival1"), above(0), TEST, expected=("inconclusive",),
        level=SAME_LEVEL,
    ),
    Control(
        "Planted defect: a quarter of the training images, for as many steps, makes the complete "
        "network worse.",
        error("complete_few") - error("complete"), above(0), TEST, expected=("supported",),
        defect=True, gate=False,
    ),
)  # fmt: skip
FIGURES = (
    error_lines(
        "images",
        "Final error by number of training images. Trained for as many steps; mean over seeds, "
        "band from the best to the worst.",
        {
            f"survival {SURVIVAL:g}": {FEW: "stochastic_few", 16_000: "stochastic"},
            "complete": {FEW: "complete_few", 16_000: "complete"},
        },
        "training images", claim="The fewer the images",
    ),
    value_rows(
        "gradients",
        "Gradient norm of the first convolution over that of the classifier. Geometric mean over "
        "the epochs; small dots are seeds.",
        {
            f"survival {SURVIVAL:g}": ("first over classifier", "stochastic"),
            "complete": ("first over classifier", "complete"),
        },
        "ratio of gradient norms", claim="With stochastic depth the gradient",
    ),
    error_rows(
        "errors", "Final error of every network of the study.", tuple(ARMS),
        claim="With 16,000 images stochastic depth lowers",
    ),
)  # fmt: skip
STUDY = Study(
    name="stochastic_depth",
    title="Does a residual network generalise better when its branches are dropped at random?",
    lecture=(
        "Stochastic depth: a network that is shallow where it learns and deep where it is used has "
        "lower test errors, and larger gradients in its first layers (Huang et al. 2016)"
    ),
    arms=ARMS,
    presets={
        "quick": Preset(
            "fashion_mnist_small", 2, judged=False, rate=0.1,
            training={"steps": 100, "batch_size": 64, "width": 4, "warmup_epochs": 0.05},
            arms=("stochastic", "stochastic_few", "complete", "complete_few"),
        ),
        "small": Preset(
            "fashion_mnist_small", 6, select="validation", training=LADDER,
            grid=(0.05, 0.1, 0.2),
        ),
    },
    measure=measure,
    claims=CLAIMS,
    figures=FIGURES,
    method=(
        "Each block's branch survives a step with a probability that falls linearly from 1 to the "
        f"last block's {SURVIVAL:g}; in evaluation it scales the branch. One random number "
        "is shared by the batch, as in the paper. The network on few images is trained at the rate "
        "that was selected with all images."
    ),
    limits=(
        "Nine blocks and twelve epochs: not the gain of a hundred layers and 500 epochs; and a "
        "branch that is dropped is computed all the same, so no time is saved."
    ),
    beyond=True,
)  # fmt: skip

if __name__ == "__main__":
    run_command(lambda: run_study(STUDY, parse(Options)))
