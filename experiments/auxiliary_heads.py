"""Do auxiliary classifiers feed gradient into the lower layers, and does that help?

Szegedy et al. 2014 (arXiv:1409.4842), section 5; Szegedy et al. 2015 (arXiv:1512.00567), section 4.

python experiments/auxiliary_heads.py                  # digits, a minute, no verdicts
python experiments/auxiliary_heads.py --preset small   # Fashion-MNIST: twelve minutes
"""

import math
from functools import partial
from typing import Any

import jax
import numpy as np

from deepjax.analysis import LossContributions, init_variables, loss_contributions
from deepjax.command_line import parse, run_command
from deepjax.models.layers.norms import Norm
from deepjax.study.arms.arm import Arm
from deepjax.study.claim import BOTH, SAME_LEVEL, UNDERPOWERED, Claim, Control
from deepjax.study.networks import SmallImageGoogLeNet
from deepjax.study.preset import Preset
from deepjax.study.quantity import Quantity, error, measured
from deepjax.study.report.study_figures import error_by_epoch, error_rows, value_lines
from deepjax.study.runner import run_study
from deepjax.study.stats.rules import above
from deepjax.study.study import Options, SeedContext, Study
from deepjax.training import open_run

# Networks: GoogLeNet for small images, 22 layers deep, with and without batch norm, with heads on
# 4a and 4d or without, on all training images and on a quarter of them. Its stem halves images of
# 14 pixels once, so that 4a and 4d have maps of 4x4, which is what the heads see in the paper. None
# has dropout, with which so narrow a network learns worse. Gradients are clipped: without that SGD
# does not train the network without batch norm.

WEIGHT = 0.3  # of each head's loss (Szegedy et al. 2014, section 5)
FEW = "[:4000]"


def network(norm: Norm, weight: float, **options: Any) -> Arm:
    """GoogLeNet with heads of this weight; 0: without heads."""
    make = partial(SmallImageGoogLeNet, norm=norm, dropout=0.0, auxiliary_dropout=0.0)
    name = f"own/small_image_googlenet_{norm}"
    return Arm(name, make, {"auxiliary_weight": weight}, **options)


ARMS = {
    "no_norm": network("none", 0.0),
    "no_norm_heads": network("none", WEIGHT),
    "no_norm_few_images": network("none", 0.0, part=FEW),
    "no_norm_few_images_heads": network("none", WEIGHT, part=FEW),
    "batch_norm": network("batch", 0.0),
    "batch_norm_heads": network("batch", WEIGHT),
    "batch_norm_again": network("batch", 0.0, rate_of="batch_norm", other_seeds=True),
}


# Measurements.

STAGES = (
    "stem", "inception3a", "inception3b", "inception4a", "inception4b", "inception4c",
    "inception4d", "inception4e", "inception5a", "inception5b",
)  # fmt: skip
LOW, HIGH = STAGES[:4], (*STAGES[7:], "head")  # below and above both heads: those of 4a and 4d


def head_gradients(found: LossContributions) -> dict[str, Any]:
    """The heads' part of the gradient, and its cosine with the main loss's.

    "stages": the fraction of the gradient's norm that is the heads', a mean over a stage's layers,
    stage by stage; "below" and "above" both heads: means over layers. "cosine": below both heads,
    a mean over layers and heads.
    """
    heads = [row for row in found.layers if row.loss != "main"]

    def fraction(*stages: str) -> float:
        rows = [row for row in heads if row.layer.startswith(stages)]
        return sum(row.fraction for row in rows) / len({row.layer for row in rows})

    cosines = [row.cosine for row in heads if row.layer.startswith(LOW)]
    return {
        "stages": [fraction(stage) for stage in STAGES],
        "below": fraction(*LOW),
        "above": fraction(*HIGH),
        "cosine": float(np.mean([each for each in cosines if not math.isnan(each)])),
    }


def measure(context: SeedContext) -> dict[str, Any]:
    """The heads' gradient in the preset's networks, before and after training with heads."""
    found: dict[str, Any] = {}
    for norm in ("no_norm", "batch_norm"):
        arm = f"{norm}_heads"
        if arm not in context.runs:
            continue
        run = open_run(context.runs[arm], data_dir=context.data_dir, make=ARMS[arm].make)
        batch = run.batch(64, seed=context.seed)
        start = init_variables(run.model, jax.random.key(context.seed), batch["image"].shape)
        for moment, variables in (("untrained", start), ("trained", run.variables)):
            contributions = loss_contributions(run.model, variables, batch, weights=WEIGHT)
            found[f"{norm}_{moment}"] = head_gradients(contributions)
    return found


TRAINING = {"grad_clip_norm": 1.0, "augment": False}


# Rules, fixed before the judged runs. In pilots the gradients of untrained networks vary more with
# the seed than those of trained ones, so each moment has claims of its own. Some gradient of the
# heads reaches the layers below them in any case, so the rule asks for a tenth of all gradient
# there, and a tenth more is of interest; so is a cosine of a tenth. Smallest effect of interest on
# errors: 1 point, which is what such heads gained in deeply supervised networks (Lee et al. 2015:
# 35.68 to 34.57 % of error on CIFAR-100); GoogLeNet's paper has no number.
TENTH, POINT = 0.1, 1.0
BELOW, COSINE = "fraction of the gradient below both heads", "cosine below both heads"
WITH_HEADS = ("no_norm_heads", "batch_norm_heads")
LOOKS = {
    f"{norm}_{moment}": f"{label}, {moment}"
    for norm, label in (("no_norm", "without batch norm"), ("batch_norm", "with batch norm"))
    for moment in ("untrained", "trained")
}


def of_both(value: str, name: str, moment: str) -> list[Quantity]:
    """A measured value of both networks, "untrained" or "trained"."""
    looks = {look: label for look, label in LOOKS.items() if look.endswith(f"_{moment}")}
    return [measured(look, value, name=f"{name}, {label}") for look, label in looks.items()]


def gain(arm: str) -> Quantity:
    """Points of error that the heads save."""
    return (error(arm) - error(f"{arm}_heads")).named(f"{arm.replace('_', ' ')}, saved by heads")


CLAIMS = (
    Claim(
        "At the end of training auxiliary heads supply more than a tenth of the gradient of the "
        "layers below them.",
        of_both("below", BELOW, "trained"), above(TENTH),
        interest=TENTH, headline=True, measures=WITH_HEADS,
    ),
    Claim(
        "Auxiliary heads lower the final test error without batch norm.",
        gain("no_norm"), above(0), interest=POINT, headline=True, exploratory=UNDERPOWERED,
    ),
    Claim(
        "Before training auxiliary heads supply more than a tenth of the gradient of the layers "
        "below them.",
        of_both("below", BELOW, "untrained"), above(TENTH),
        interest=TENTH, measures=WITH_HEADS, exploratory=UNDERPOWERED,
    ),
    Claim(
        "At the end of training the heads' gradient has a positive cosine with that of the main "
        "loss.",
        of_both("cosine", COSINE, "trained"), above(0), interest=TENTH, measures=WITH_HEADS,
    ),
    Claim(
        "Before training the heads' gradient has a positive cosine with that of the main loss.",
        of_both("cosine", COSINE, "untrained"), above(0), interest=TENTH, measures=WITH_HEADS,
        exploratory=UNDERPOWERED,
    ),
    Claim(
        "Auxiliary heads lower the final test error with batch norm.",
        gain("batch_norm"), above(0), interest=POINT,
    ),
    Claim(
        "Auxiliary heads lower the final test error without batch norm on a quarter of the images.",
        gain("no_norm_few_images"), above(0), interest=POINT,
    ),
    Claim(
        "Without batch norm auxiliary heads lower the final test error more on a quarter of the "
        "images than on all.",
        gain("no_norm_few_images") - gain("no_norm"), above(0), interest=POINT,
        exploratory=UNDERPOWERED,
    ),
    Control(
        "Auxiliary heads supply more than a tenth of the gradient of the layers above them.",
        of_both("above", "fraction of the gradient above both heads", "trained"), above(TENTH),
    ),
    Control(
        "A/A: the network with batch norm is worse than itself under other seeds.",
        error("batch_norm") - error("batch_norm_again"), above(0), BOTH,
        expected=("inconclusive",), level=SAME_LEVEL,
    ),
    Control(
        "Planted defect: a quarter of the training images, for as many steps, makes the network "
        "without batch norm worse.",
        error("no_norm_few_images") - error("no_norm"), above(0), expected=("supported",),
        defect=True, gate=False,
    ),
)  # fmt: skip
FIGURES = (
    value_lines(
        "gradient_fractions",
        "Fraction of the gradient's norm that is the heads', by stage. Mean over a stage's layers, "
        "then over seeds; band from the least to the greatest. The dotted line is the rule's "
        "tenth.",
        {label: (look, "stages") for look, label in LOOKS.items()},
        ("stage: 1 is the stem, 2 to 10 the Inception modules; heads are on 4 and 7",
         "fraction of the heads' losses"),
        x=range(1, 1 + len(STAGES)),
        claim="At the end of training auxiliary heads supply more than a tenth of the gradient",
        reference={"a tenth": [TENTH] * len(STAGES)},
    ),
    error_rows(
        "errors",
        "Final error with and without auxiliary heads, on training and on test images. Seeds as "
        "dots, their mean and its 95 % interval over seeds.",
        {name: name.replace("_", " ") for name in ARMS if not name.endswith("again")},
        claim="Auxiliary heads lower the final test error without batch norm.",
    ),
    error_by_epoch(
        "epochs",
        "Error by epoch, with auxiliary heads and without: test solid, training dashed (a mean "
        "over the epoch).",
        {
            title: {"with heads": f"{arm}_heads", "without": arm}
            for title, arm in (("Without batch norm", "no_norm"), ("With batch norm", "batch_norm"))
        },
    ),
)  # fmt: skip
STUDY = Study(
    name="auxiliary_heads",
    title="Do auxiliary classifiers feed the lower layers, and does that help?",
    lecture="GoogLeNet: auxiliary classification outputs inject additional gradient at lower "
    "layers",
    arms=ARMS,
    presets={
        "quick": Preset(
            "digits", 2, judged=False, rate=0.1,
            training={"epochs": 12, "batch_size": 64, "width": 8, "image_size": 14,
                      **TRAINING},
            arms=("no_norm", "no_norm_heads"),
        ),
        "small": Preset(
            "fashion_mnist_small", 8, select="validation",
            training={"epochs": 5, "batch_size": 64, "width": 8, **TRAINING},
            grid=(0.05, 0.1, 0.2),
        ),
        "gpu": Preset(
            "fashion_mnist", 6, select="validation",
            training={"epochs": 20, "batch_size": 128, "width": 32, "precision": "bfloat16",
                      **TRAINING},
            grid=(0.05, 0.1, 0.2),
            arms=("no_norm", "no_norm_heads", "batch_norm", "batch_norm_heads",
                  "batch_norm_again"),
        ),
    },
    measure=measure,
    claims=CLAIMS,
    figures=FIGURES,
    method=(
        "A head is a classifier on the output of an inner module, here of 4a and of 4d; its loss "
        "is added with weight 0.3 (Szegedy et al. 2014, section 5). The heads' fraction of a "
        "layer's gradient is the sum of the weighted norms of their gradients, divided by that of "
        "all losses. Each network is trained with heads and without, at a learning rate of its "
        "own and without augmentation; evaluation uses no heads."
    ),
    limits=(
        "A narrow GoogLeNet on small grey images for a few epochs: not how heads act in a network "
        "of the paper's width trained to convergence on ImageNet."
    ),
)  # fmt: skip

if __name__ == "__main__":
    run_command(lambda: run_study(STUDY, parse(Options)))
