"""Is deeper better, or is it only larger?

Zagoruyko and Komodakis 2016, "Wide residual networks" (arXiv:1605.07146).

python experiments/depth_or_width.py                 # a minute on two cores, no verdicts
python experiments/depth_or_width.py --preset small  # Fashion-MNIST at 14x14: 8 minutes
python experiments/depth_or_width.py --preset small --pilots    # select rates first
"""

from typing import Any

import numpy as np

from deepjax.analysis import count_macs
from deepjax.command_line import parse, run_command
from deepjax.models import cifar_stages, create_model
from deepjax.study.arms.arm import Arm
from deepjax.study.claim import SAME_LEVEL, TEST, Claim, Control, ExactClaim
from deepjax.study.ladder import LADDER, LADDER_GPU, ladder_arm
from deepjax.study.preset import Preset
from deepjax.study.quantity import error, slope
from deepjax.study.report.metrics import cost_table
from deepjax.study.report.study_figures import error_lines, error_rows
from deepjax.study.runner import run_study
from deepjax.study.stats.rules import above, below
from deepjax.study.study import Options, Study

# Networks: residual ones of 6n + 2 layers, the width of the first stage by depth. Those of equal
# cost have multiply-adds within TOLERANCE of the network of 20 layers.
SHALLOW, MIDDLE, DEEP = 8, 20, 44
EQUAL_COST = {SHALLOW: 15, MIDDLE: 8, DEEP: 5}
EQUAL_WIDTH = dict.fromkeys(EQUAL_COST, 8)
IMAGE, TOLERANCE = (14, 14, 1), 0.06  # shape of an image of the embedded Fashion-MNIST


def name_of(depth: int, width: int) -> str:
    """The name of an arm."""
    return f"{depth}_layers_width{width}"


def network(depth: int, width: int, **options: Any) -> Arm:
    """A residual network of a depth and a width."""
    return ladder_arm("resnet", depth, training={"width": width}, **options)


NARROW = name_of(SHALLOW, EQUAL_WIDTH[SHALLOW])
ARMS = {
    name_of(depth, width): network(depth, width)
    for depth in (DEEP, MIDDLE, SHALLOW)
    for width in dict.fromkeys((EQUAL_WIDTH[depth], EQUAL_COST[depth]))
} | {
    f"{NARROW}_again": network(SHALLOW, EQUAL_WIDTH[SHALLOW], rate_of=NARROW, other_seeds=True),
    "8_layers_width2": network(SHALLOW, 2, rate_of=NARROW),
}


def equal_cost() -> tuple[bool, str]:
    """Whether the networks of equal cost have it, and their multiply-adds."""
    macs = {
        depth: count_macs(create_model("cifar_resnet20", stages=cifar_stages(depth), width=width),
                          IMAGE)
        for depth, width in EQUAL_COST.items()
    }  # fmt: skip
    holds = all(abs(count / macs[MIDDLE] - 1) <= TOLERANCE for count in macs.values())
    return holds, ", ".join(f"{depth} layers: {count:,}" for depth, count in macs.items())


# Rules, fixed before the runs. MARGIN: WRN-16-8 and ResNet-1001, of equal size, are 0.65 points
# apart on CIFAR-10 (4.27 and 4.92 %), in favour of the wide one. TREND: that margin over the 2.5
# doublings of the depth from 8 to 44 layers is 0.26 points each.
MARGIN, TREND = 0.65, 0.26


def trend(widths: dict[int, int], label: str) -> Any:
    """Points of test error for each doubling of the depth."""
    points = {float(np.log2(depth)): error(name_of(depth, w)) for depth, w in widths.items()}
    return slope(points, f"{label}, for each doubling of depth")


AT_WIDTH, AT_COST = trend(EQUAL_WIDTH, "equal width"), trend(EQUAL_COST, "equal cost")
CLAIMS = (
    Claim(
        f"Deeper is better at equal width, from {SHALLOW} to {DEEP} layers, on test images.",
        AT_WIDTH, below(0), TEST, interest=TREND,
    ),
    Claim(
        f"Deeper is better at equal cost, from {SHALLOW} to {DEEP} layers, on test images.",
        AT_COST, below(0), TEST, interest=TREND,
    ),
    Claim(
        "Depth helps more at equal width, where the deeper network is larger too, than at equal "
        "cost, on test images.",
        AT_WIDTH - AT_COST, below(0), TEST, interest=TREND,
    ),
    Claim(
        f"Wide is enough at equal cost: {MIDDLE} layers have at most {MARGIN:g} points more test "
        f"error than {DEEP} narrower ones.",
        error(name_of(MIDDLE, EQUAL_COST[MIDDLE])) - error(name_of(DEEP, EQUAL_COST[DEEP])),
        below(MARGIN), TEST, interest=MARGIN,
    ),
    Control(
        f"A/A: the residual network of {SHALLOW} layers is worse than itself under other seeds.",
        error(NARROW) - error(f"{NARROW}_again"), above(0), TEST, expected=("inconclusive",),
        level=SAME_LEVEL,
    ),
    Control(
        "Planted defect: a quarter of the width, a fifteenth of the parameters, makes the network "
        f"of {SHALLOW} layers worse.",
        error("8_layers_width2") - error(NARROW), above(0), TEST, expected=("supported",),
        defect=True, gate=False,
    ),
    ExactClaim(
        "The networks of equal cost have equally many multiply-adds.",
        f"Supported if those of {SHALLOW} and {DEEP} layers are within {100 * TOLERANCE:g} % of "
        f"those of {MIDDLE} layers.",
        equal_cost, expected=("supported",),
    ),
)  # fmt: skip
FIGURES = (
    error_lines(
        "depth",
        "Final error by depth, at equal width and at equal multiply-adds. Residual networks; mean "
        "over seeds, band from the best to the worst.",
        {
            label: {depth: name_of(depth, width) for depth, width in widths.items()}
            for label, widths in (("equal width", EQUAL_WIDTH), ("equal cost", EQUAL_COST))
        },
        "layers", claim="Deeper is better at equal cost",
    ),
    error_rows(
        "errors", "Final error of every network. Width: filters of the first stage.",
        {arm: arm.replace("_", " ").replace("width", "width ") for arm in ARMS},
        claim="Wide is enough",
    ),
)  # fmt: skip
STUDY = Study(
    name="depth_or_width",
    title="Is deeper better, or is it only larger?",
    lecture=(
        "The winners grew deeper, and larger with it; at equal cost a wide residual network is as "
        "good as a thin one of many more layers (Zagoruyko and Komodakis 2016)"
    ),
    arms=ARMS,
    presets={
        "quick": Preset(
            "digits", 2, judged=False, rate=0.1,
            training={"epochs": 6, "batch_size": 64, "warmup_epochs": 2.0},
            arms=tuple(
                name_of(depth, widths[depth]) for depth in (MIDDLE, SHALLOW)
                for widths in ((EQUAL_WIDTH, EQUAL_COST) if depth == SHALLOW else (EQUAL_WIDTH,))
            ),
        ),
        "small": Preset(
            "fashion_mnist_small", 6, select="validation", training=LADDER,
            grid=(0.05, 0.1, 0.2),
        ),
        "gpu": Preset(
            "fashion_mnist", 6, select="validation", training=LADDER_GPU,
            grid=(0.05, 0.1, 0.2),
        ),
    },
    claims=CLAIMS,
    figures=FIGURES,
    tables=(lambda results: cost_table(results.costs),),
    method=(
        "A deeper network of equal width has more parameters and arithmetic too. At equal cost the "
        "deeper one is narrower, so that multiply-adds and parameters stay the same within 6 %. "
        "All are residual networks of 6n + 2 layers with batch norm (He et al. 2015, section 4.2), "
        "each at its own learning rate."
    ),
    limits=(
        "Equal multiply-adds are not equal time, as layers wait for each other; and a width of 5 "
        "is far from the widths of ImageNet."
    ),
    beyond=True,
)  # fmt: skip

if __name__ == "__main__":
    run_command(lambda: run_study(STUDY, parse(Options)))
