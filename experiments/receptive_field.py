"""How much of the image does a unit see, in theory and in effect?

Luo et al. 2016 (arXiv:1701.04128); Simonyan and Zisserman 2014 (arXiv:1409.1556), section 2.3.

python experiments/receptive_field.py                  # a minute on two cores, no verdicts
python experiments/receptive_field.py --preset small   # reuses the ResNet-20s of `degradation`
"""

import math
from collections import defaultdict
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from deepjax.command_line import parse, run_command
from deepjax.study.arms.arm import Arm
from deepjax.study.claim import CHANGED, SAME_LEVEL, UNDERPOWERED, Claim, Control, ExactClaim
from deepjax.study.effective_fields import (
    field_statistics,
    fields_of_run,
    normalized_map,
    stack_field,
    theoretical_field,
)
from deepjax.study.ladder import LADDER, LADDER_GPU
from deepjax.study.networks import Activation
from deepjax.study.preset import Preset
from deepjax.study.quantity import Quantity, log, measured, slope
from deepjax.study.report.plots import maps_figure
from deepjax.study.report.study_figures import StudyFigure, value_lines, value_rows
from deepjax.study.results import StudyResults
from deepjax.study.runner import run_study
from deepjax.study.stats.rules import above, within
from deepjax.study.study import Options, SeedContext, Study

# Networks: untrained stacks of convolutions, and a trained residual network.
DEPTHS = (5, 10, 20, 40)
KINDS: dict[str, tuple[Activation, int]] = {"linear": ("identity", 1), "ReLU": ("relu", 4)}
"""By name: the activation, and the number of images, which a linear network does not depend on."""
THREE, SEVEN = (3, 3, 3), (7,)
SMALL: dict[str, dict[str, Any]] = {
    "three 3x3": {"kernels": THREE, "stream": 0},
    "three 3x3, again": {"kernels": THREE, "stream": 1},
    "one 7x7": {"kernels": SEVEN, "stream": 2},
    "centre only": {"kernels": THREE, "stream": 3, "pointwise": (2,)},
}
"""By name: kernels, a number that makes the weights differ, and the planted defect."""
LAYERS = {"middle map": "stage2_block3", "last map": "stage3_block3"}
ARMS = {"resnet20": Arm("cifar_resnet20")}

# Measurements.


def measure(context: SeedContext) -> dict[str, Any]:
    """Fields of random stacks by depth, of three 3x3 and one 7x7, of a network in training."""
    sizes, seed = context.preset.sizes, context.seed
    parts = len(DEPTHS) + 2
    stacks: dict[str, dict[str, Any]] = {kind: defaultdict(dict) for kind in KINDS}
    for i, depth in enumerate(DEPTHS):
        for kind, (activation, images) in KINDS.items():
            field = stack_field((3,) * depth, activation, seed, sizes["samples"], images)
            for what, value in field_statistics(field).items():
                stacks[kind][what][str(depth)] = value
        context.progress(i + 1, parts)
    small = {}
    for name, options in SMALL.items():
        field = stack_field(
            options["kernels"], "relu", 10 * seed + options["stream"], 2 * sizes["samples"],
            pointwise=options.get("pointwise", ()),
        )  # fmt: skip
        small[name] = field_statistics(field)
    context.progress(parts - 1, parts)
    training: dict[str, Any] = {}
    for name, layer in LAYERS.items():
        fields = fields_of_run(context.runs["resnet20"], layer, sizes["images"], context.data_dir)
        training[name] = {
            when: {**field_statistics(field), "map": normalized_map(field)}
            for when, field in fields.items()
        }
    return {"stacks": stacks, "small": small, "training": training}


# Rules, fixed before the runs. Theory: n random k x k convolutions have a field of sigma
# sqrt(n (k^2 - 1) / 12), so three 3x3 have 1.41 and one 7x7 has 2 pixels, though both see 7, and an
# excess kurtosis of -1.5 / n for k = 3. An exponent of 0.4 to 0.6 excludes that of the theoretical
# field, 0.96 at these depths. An excess kurtosis within 0.3 excludes a triangle (-0.6), a box
# (-1.2) and a logistic curve (+1.2).
ROOT, ROOT_MARGIN = within(0.4, 0.6), 0.1
WIDTH_MARGIN = 0.1  # of the logarithm of a ratio
ROOT_OF_HALF = within(-0.5 * math.log(2) - WIDTH_MARGIN, -0.5 * math.log(2) + WIDTH_MARGIN)
BELL = within(-0.3, 0.3)
GROWTH = 0.2  # pixels; less than a tenth of an untrained map's sigma, 2.7 to 3.1 on pilot seeds


def exponent(kind: str, what: str) -> Quantity:
    """The power of depth with which a length grows."""
    points = {math.log(n): log(measured("stacks", kind, what, str(n))) for n in DEPTHS}
    return slope(points, f"{what}, {kind}, exponent of depth")


def sigma(name: str) -> Quantity:
    """Standard deviation in pixels of the field of a small stack."""
    return measured("small", name, "sigma", name=f"sigma, {name}", unit=" pixels")


def growth(layer: str) -> list[Quantity]:
    """Size and sigma after training less before."""
    after, before = (
        [
            measured("training", layer, when, what, name=f"{what} {when}", unit=" pixels")
            for what in ("size", "sigma")
        ]
        for when in ("after", "before")
    )
    return [one - other for one, other in zip(after, before, strict=True)]


def same_pixels() -> tuple[bool, str]:
    """Whether the theoretical fields of three 3x3 and one 7x7 are equal."""
    three, seven = theoretical_field(THREE), theoretical_field(SEVEN)
    return three == seven, f"three 3x3: {three}x{three} pixels, one 7x7: {seven}x{seven} pixels"


CLAIMS = (
    ExactClaim(
        "Three 3x3 convolutions see as many pixels as one 7x7.",
        "Supported if the theoretical fields, from the traced computation, are equal; else "
        "refuted.",
        same_pixels, headline=True,
    ),
    Claim(
        "The effective field of an untrained stack grows as the square root of its depth.",
        [exponent(kind, what) for what in ("sigma", "size") for kind in KINDS],
        ROOT, interest=ROOT_MARGIN, headline=True,
    ),
    Claim(
        "By the definition of Luo et al. 2016 the effective field of three 3x3 convolutions is "
        "narrower than that of one 7x7, by the square root of a half.",
        (log(sigma("three 3x3")) - log(sigma("one 7x7"))).named("log of the ratio of sigmas"),
        ROOT_OF_HALF, interest=WIDTH_MARGIN,
    ),
    Claim(
        "The effective field of an untrained stack of 20 or 40 layers is bell-shaped: its profile "
        "has the kurtosis of a Gaussian.",
        [
            measured("stacks", kind, "kurtosis", str(depth),
                     name=f"excess kurtosis, {kind}, {depth} layers")
            for kind in KINDS for depth in DEPTHS[2:]
        ],
        BELL, interest=BELL.high,
    ),
    Claim(
        "The effective field of the last map of ResNet-20 grows with training.",
        growth("last map"), above(0), interest=GROWTH, exploratory=UNDERPOWERED,
        measures=("resnet20",),
    ),
    Claim(
        "The effective field of the middle map of ResNet-20 grows with training.",
        growth("middle map"), above(0), interest=GROWTH, exploratory=CHANGED,
        measures=("resnet20",),
    ),
    Control(
        "A/A: three 3x3 convolutions have a wider field than three with other weights.",
        sigma("three 3x3") - sigma("three 3x3, again"), above(0), expected=("inconclusive",),
        level=SAME_LEVEL,
    ),
    Control(
        "Planted defect: if the second of three 3x3 kernels is zero outside its centre, the "
        "effective field is narrower.",
        sigma("three 3x3") - sigma("centre only"), above(0), expected=("supported",), defect=True,
    ),
)  # fmt: skip


def maps(results: StudyResults, title: str) -> Figure:
    """Mean maps of two layers before and after training."""
    rows = [
        [
            (
                f"{name[0].upper()}{name[1:]}, {when} training",
                np.mean(results.values("training", name, when, "map"), axis=0),
            )
            for when in ("before", "after")
        ]
        for name in LAYERS
    ]
    return maps_figure(title, rows, "mean gradient² / its peak")


FIGURES = (
    value_lines(
        "depth",
        "Fields of untrained stacks of 3x3 convolutions by depth. Mean over seeds, band from least "
        "to greatest; dotted: the theoretical field, and the theory of sigma, sqrt(2 n / 3).",
        {
            f"{what}, {kind}": ("stacks", kind, what)
            for what in ("size", "sigma") for kind in KINDS
        },
        ("layers", "pixels"), DEPTHS, x_scale="log", y_scale="log",
        reference={
            "theoretical": [theoretical_field((3,) * depth) for depth in DEPTHS],
            "_sigma": [math.sqrt(2 * depth / 3) for depth in DEPTHS],
        },
        claim="The effective field of an untrained stack grows",
    ),
    value_rows(
        "seven",
        "Width of the field of stacks that see seven pixels, untrained. \"Centre only\" is the "
        "planted defect: its second kernel is zero outside the centre. Dotted: theory.",
        {name: ("small", name, "sigma") for name in SMALL},
        "sigma (pixels)",
        references={"sqrt(4/3)": math.sqrt(4 / 3), "sqrt(2)": math.sqrt(2), "2": 2.0},
        claim="By the definition of Luo et al. 2016",
    ),
    StudyFigure(
        "training", maps,
        "What moves the centre unit of two maps of ResNet-20, before and after training. Mean "
        "square of the gradient, over images, channels and seeds.",
        "The effective field of the last map",
    ),
)  # fmt: skip
STUDY = Study(
    name="receptive_field",
    title="What does a unit see, in theory and in effect?",
    lecture=(
        "VGG: three stacked 3x3 convolutions have the same effective receptive field as one 7x7"
    ),
    arms=ARMS,
    presets={
        "quick": Preset(
            "fashion_mnist_small", 2, judged=False, rate=0.1,
            training={"steps": 40, "batch_size": 128, "width": 8, "warmup_epochs": 0.1},
            sizes={"samples": 8, "images": 50},
        ),
        # Training as in `degradation`, whose rates and finished runs are reused.
        "small": Preset(
            "fashion_mnist_small", 6, pilots="degradation", training=LADDER,
            sizes={"samples": 96, "images": 100},
        ),
        "gpu": Preset(
            "fashion_mnist", 6, pilots="degradation", training=LADDER_GPU,
            sizes={"samples": 96, "images": 100},
        ),
    },
    measure=measure,
    claims=CLAIMS,
    figures=FIGURES,
    method=(
        "The theoretical field of a unit is all pixels that can influence it; this is what the "
        "lecture's \"effective receptive field of 7x7\" means. The effective field of Luo et al. "
        "2016, section 3.1, weighs each pixel by the square of the gradient of the centre unit, "
        "mean over images, channels and samples of the weights. Size: the root of the number of "
        "pixels above 4.55 % of the peak. Sigma: the standard deviation of the map as a "
        "distribution."
    ),
    limits=(
        "Three 3x3 and one 7x7 are compared untrained, so not what a trained 7x7 sees; that they "
        "differ by Luo's later definition says nothing against the lecture's; the image bounds the "
        "fields of ResNet-20."
    ),
)  # fmt: skip

if __name__ == "__main__":
    run_command(lambda: run_study(STUDY, parse(Options)))
