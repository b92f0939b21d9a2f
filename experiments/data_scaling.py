"""How does the error fall with the number of images, and does the gain of shortcuts remain?

Hestness et al. 2017, "Deep learning scaling is predictable, empirically" (arXiv:1712.00409).

python experiments/data_scaling.py                 # a minute on two cores, no verdicts
python experiments/data_scaling.py --preset small  # Fashion-MNIST at 14x14: 23 minutes with
                                                   # --reuse-runs-from runs, after degradation
"""

from typing import Any

import numpy as np

from deepjax.command_line import parse, run_command
from deepjax.study.arms.predictions import read_misclassified
from deepjax.study.claim import SAME_LEVEL, TEST, UNDERPOWERED, Claim, Control
from deepjax.study.ladder import LADDER, ladder_arm
from deepjax.study.preset import Preset
from deepjax.study.quantity import error, log, measured, slope
from deepjax.study.report.study_figures import error_lines, error_rows, value_lines
from deepjax.study.runner import run_study
from deepjax.study.stats.rules import above, below, within
from deepjax.study.study import Options, SeedContext, Study

DEPTH, SIZES, ALL = 20, (2000, 4000, 8000), 16_000
KINDS = {"plain": "plain", "residual": "resnet"}

# Networks: those of the study of degradation, on parts of the images; the rate is that of all
# images, and the number of steps too.


def arm_of(kind: str, images: int) -> str:
    """The name of an arm."""
    return f"{kind}{DEPTH}" if images == ALL else f"{kind}{DEPTH}_{images}"


ARMS = {
    arm_of(kind, images): ladder_arm(
        kind, DEPTH, rate_of=f"{kind}{DEPTH}", part=f"[:{images}]"
    )
    for kind in KINDS.values() for images in SIZES
} | {
    "plain20": ladder_arm("plain", DEPTH),
    "resnet20": ladder_arm("resnet", DEPTH),
    "resnet8": ladder_arm("resnet", 8),
    "resnet8_again": ladder_arm("resnet", 8, rate_of="resnet8", other_seeds=True),
    "resnet8_width2": ladder_arm("resnet", 8, rate_of="resnet8", training={"width": 2}),
}  # fmt: skip

# Measurements.


def measure(context: SeedContext) -> dict[str, Any]:
    """The test errors as fractions, by kind and number of images, for their logarithms."""
    found: dict[str, dict[str, float]] = {}
    for kind in KINDS.values():
        for images in (*SIZES, ALL):
            run = context.runs.get(arm_of(kind, images))
            wrong = read_misclassified(run) if run else None
            if wrong is not None:
                found.setdefault(kind, {})[str(images)] = float(wrong["test"].mean())
    return {"test error": found}


# Rules, fixed before the runs. EXPONENTS: those that Hestness et al. 2017 found for generalisation
# error in four domains were between -0.35 and -0.07. DOUBLING: the least interesting change of the
# error for each doubling of the images; at 12 % error an exponent of -0.07 gives 0.6 points. LOSS:
# three doublings of it, 0.9 points, would cancel what shortcuts gain at 20 layers in a pilot of
# this test bed with all images.
EXPONENTS, DOUBLING, LOSS = (-0.35, -0.07), 0.5, 0.3


def trend(kind: str) -> Any:
    """Points of test error for each doubling of the number of images."""
    points = {float(np.log2(images)): error(arm_of(kind, images)) for images in (*SIZES, ALL)}
    return slope(points, f"{kind}, for each doubling of the images")


def exponent(kind: str) -> Any:
    """The exponent of the number of images in the test error."""
    points = {
        float(np.log(images)): log(measured("test error", kind, str(images)))
        for images in (*SIZES, ALL)
    }
    return slope(points, f"exponent of the images, {kind}")


CLAIMS = (
    Claim(
        "The test error falls with the number of images, of the plain and of the residual network "
        f"of {DEPTH} layers.",
        [trend(kind) for kind in KINDS.values()], below(0), TEST, interest=DOUBLING,
    ),
    Claim(
        "From 2,000 to 16,000 images the test error falls with an exponent in the range of the "
        f"literature, of the plain and of the residual network of {DEPTH} layers.",
        [exponent(kind) for kind in KINDS.values()], within(*EXPONENTS),
        interest=float(np.ptp(EXPONENTS)) / 2,
        measures=tuple(arm_of(kind, images) for kind in KINDS.values() for images in (*SIZES, ALL)),
    ),
    Claim(
        "The residual network is better than the plain one with every number of images, on test "
        "images.",
        [
            error(arm_of("plain", images)) - error(arm_of("resnet", images))
            for images in (*SIZES, ALL)
        ],
        above(0), TEST, interest=DOUBLING, exploratory=UNDERPOWERED,
    ),
    Claim(
        f"The advantage of the residual network shrinks by less than {LOSS:g} points of test error "
        "for each doubling of the images.",
        trend("plain") - trend("resnet"), above(-LOSS), TEST, interest=LOSS,
    ),
    Control(
        "A/A: the residual network of 8 layers is worse than itself under other seeds.",
        error("resnet8") - error("resnet8_again"), above(0), TEST, expected=("inconclusive",),
        level=SAME_LEVEL,
    ),
    Control(
        "Planted defect: a quarter of the width makes the residual network of 8 layers worse.",
        error("resnet8_width2") - error("resnet8"), above(0), TEST, expected=("supported",),
        defect=True, gate=False,
    ),
)  # fmt: skip
FIGURES = (
    error_lines(
        "images",
        f"Final error by number of training images, {DEPTH} layers. Trained for as many steps; "
        "training error on up to 4,000 of these images. Mean over seeds, band from the best to the "
        "worst; baselines with all images.",
        {
            label: {images: arm_of(kind, images) for images in (*SIZES, ALL)}
            for label, kind in KINDS.items()
        },
        "training images", claim="The advantage of the residual network",
    ),
    value_lines(
        "power",
        "Test error by number of images, both logarithmic. A power is a straight line. Mean over "
        "seeds, band from the least to the greatest.",
        {label: ("test error", kind) for label, kind in KINDS.items()},
        ("training images", "test error (fraction)"),
        claim="From 2,000 to 16,000 images", x_scale="log", y_scale="log",
    ),
    error_rows(
        "controls", "Final error of the networks of the controls.",
        ("resnet8", "resnet8_again", "resnet8_width2"), claim="Planted defect",
    ),
)  # fmt: skip
STUDY = Study(
    name="data_scaling",
    title="How does the error fall with more images, and does the gain of shortcuts remain?",
    lecture=(
        "Generalisation error falls as a power of the number of examples, and a better network "
        "moves the line without changing its slope much (Hestness et al. 2017)"
    ),
    arms=ARMS,
    presets={
        "quick": Preset(
            "fashion_mnist_small", 2, judged=False, rate=0.1,
            training={"steps": 60, "batch_size": 64, "width": 4, "warmup_epochs": 0.05},
            arms=tuple(arm_of(kind, images) for kind in KINDS.values() for images in (2000, ALL)),
        ),
        "small": Preset(
            "fashion_mnist_small", 6, training=LADDER,
            pilots="degradation",
        ),
    },
    measure=measure,
    claims=CLAIMS,
    figures=FIGURES,
    method=(
        "Plain and residual networks are trained on the first 2,000, 4,000, 8,000 and on all "
        "16,000 images for equally many steps, each network at the rate that the pilots of the "
        "study of degradation selected with all images."
    ),
    limits=(
        "Eight times the images are less than a decade, the number of steps is fixed, and the rate "
        "is that of the lowest training error with all images, not of the lowest test error with "
        "each number: not that the power holds beyond these sizes."
    ),
    beyond=True,
)  # fmt: skip

if __name__ == "__main__":
    run_command(lambda: run_study(STUDY, parse(Options)))
