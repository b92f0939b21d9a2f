"""Is deeper better, or is it only larger? (Zagoruyko and Komodakis 2016, arXiv:1605.07146)

python experiments/depth_or_width.py            # digits: about two and a half minutes on two cores
python experiments/depth_or_width.py --dataset fashion_mnist
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from deepjax.command_line import parse, run_command
from deepjax.models import create_model
from deepjax.models.resnet import cifar_stages
from deepjax.study.arms import Arm
from deepjax.study.cost import cost_table
from deepjax.study.report.format import format_count
from deepjax.study.report.html import Figure
from deepjax.study.report.plots import rows_figure
from deepjax.study.runner import run_study
from deepjax.study.stats.claims import compare_errors
from deepjax.study.stats.intervals import mean_interval, percent_points
from deepjax.study.stats.rules import Rule, all_below
from deepjax.study.stats.verdict import NOT_SUPPORTED, Verdict
from deepjax.study.study import Options, Preset, Study, StudyResults, make_arm

# Rules, fixed before the runs, on test errors paired by seed: a seed has the same images in the
# same order in every arm. MARGIN: WRN-16-8 and ResNet-1001, of equal size, are 0.65 points apart on
# CIFAR-10, in favour of the wide one. Controls: a deep network with a sixteenth of the
# multiply-adds must not be judged better for its depth, and a shallow one with a fortieth must not
# be judged as good.
MARGIN = 0.01
BETTER = Rule(
    "Supported if the interval lies below 0; refuted if it lies above; else inconclusive.",
    partial(all_below, bound=0.0),
)
ENOUGH = Rule(
    f"Supported if the interval lies below +{100 * MARGIN:g} point; refuted if it lies above; "
    "else inconclusive.",
    partial(all_below, bound=MARGIN),
)
# Residual networks of 6n + 2 layers: (depth, width of the first stage). The multiply-adds of EQUAL
# are within 2 % of one another and their parameters within 9 %, at any image size; the others have
# fewer.
Net = tuple[int, int]
EQUAL: tuple[Net, ...] = ((56, 8), (20, 14), (8, 26))
DEEP, MIDDLE, SHALLOW = EQUAL
CHEAPER, THIN, TINY = (20, 8), (56, 2), (8, 4)
NETS = (*EQUAL, CHEAPER, THIN, TINY)
PRESETS = {
    "digits": Preset(
        "thin and deep no better than wide and shallow (Zagoruyko and Komodakis 2016); no "
        "number, for networks so small",
        seeds=5,
        rates=(0.1, 0.03),
        training={"epochs": 12, "batch_size": 64, "warmup_epochs": 4.0},
        sizes={"factor": 1},
    ),
    # Images of half the side need a quarter of the work: a quarter of an hour on two CPU cores.
    "fashion_mnist": Preset(
        "as on digits; no source is known for so short a training",
        rates=(0.1, 0.03),
        training={"epochs": 1, "batch_size": 128, "warmup_epochs": 0.25, "image_size": 14},
        sizes={"factor": 1},
    ),
    # Twice the widths: the deep one is He et al.'s ResNet-56.
    "cifar10": Preset(
        "ResNet-56 near 6.97 % (He et al. 2015, Table 6); of other networks of about equal size, "
        "1001 thin layers 4.92 % (10.3 M), WRN-40-4 4.53 % (8.9 M), WRN-16-8 4.27 % (11.0 M "
        "parameters; Zagoruyko and Komodakis 2016); not measured here",
        seeds=5,
        training={
            "epochs": 200,
            "batch_size": 128,
            "warmup_epochs": 1.0,
            "weight_decay": 5e-4,
            "decay_norm_and_bias": True,
        },
        sizes={"factor": 2},
    ),
}


def name_of(net: Net) -> str:
    """The arm's name; its width is that without the preset's factor."""
    return f"depth{net[0]}_width{net[1]}"


def make_arms(options: Options, preset: Preset) -> dict[str, Arm]:
    """An arm a network, the slowest first."""
    arms = {}
    for depth, width in sorted(NETS, reverse=True):
        make = partial(create_model, "cifar_resnet20", stages=cifar_stages(depth))
        name = name_of((depth, width))
        arms[name] = make_arm(
            name, f"own/resnet{depth}", options, preset, make, width=width * preset.sizes["factor"]
        )
    return arms


def labels(results: StudyResults) -> dict[Net, str]:
    """Each network's depth, width and cost."""
    labels = {}
    for depth, width in NETS:
        macs = format_count(results.costs[name_of((depth, width))].macs)
        labels[depth, width] = (
            f"{depth} layers, width {width * results.preset.sizes['factor']}, {macs} MACs"
        )
    return labels


def judge(results: StudyResults) -> list[Verdict]:
    """Four claims, and a control for either rule."""
    named = {net: (label, results.arms[name_of(net)]) for net, label in labels(results).items()}

    def compare(rule: Rule, claim: str, one: Net, other: Net, **more: Any) -> Verdict:
        return compare_errors(claim, named[one], named[other], rule, ("test",), paired=True, **more)

    return [
        compare(
            BETTER,
            "Deeper is better at equal width: 56 layers make fewer errors than 20.",
            DEEP,
            CHEAPER,
        ),
        compare(
            BETTER,
            "Deeper is better at equal cost: 56 layers make fewer errors than 20 wider ones.",
            DEEP,
            MIDDLE,
        ),
        compare(
            BETTER,
            "Deeper is better at equal cost: 20 layers make fewer errors than 8 wider ones.",
            MIDDLE,
            SHALLOW,
        ),
        compare(
            ENOUGH,
            "Wide is enough at equal cost: 20 layers are not worse than 56 thinner ones.",
            MIDDLE,
            DEEP,
        ),
        compare(
            BETTER,
            "56 layers of a sixteenth of the cost make fewer errors than 20.",
            THIN,
            MIDDLE,
            control=("refuted",),
        ),
        compare(
            ENOUGH,
            "8 layers of a fortieth of the cost are not worse than 56.",
            TINY,
            DEEP,
            control=NOT_SUPPORTED,
        ),
    ]


def draw(results: StudyResults, out: Path) -> list[Figure]:
    """Test errors at equal cost and of the cheaper network, and the differences that are judged."""
    test = {net: 100 * np.asarray(results.arms[name_of(net)].final("test_error")) for net in NETS}
    errors = {
        label: test[net].tolist()
        for net, label in labels(results).items()
        if net in (*EQUAL, CHEAPER)
    }
    pairs = {"56 less 20, equal width": (DEEP, CHEAPER), "56 less 20, equal cost": (DEEP, MIDDLE)}
    pairs |= {"20 less 8, equal cost": (MIDDLE, SHALLOW)}
    gaps = {label: (test[one] - test[other]).tolist() for label, (one, other) in pairs.items()}
    effect = percent_points(mean_interval([gap / 100 for gap in gaps["56 less 20, equal cost"]]))
    means = " / ".join(f"{test[net].mean():.2f}" for net in EQUAL)
    panels = [
        (f"At equal cost, 56 / 20 / 8 layers:\n{means} % test error", "test error (%)", errors),
        (
            f"56 layers less 20, at equal cost:\n{effect}",
            "difference (points); below 0: deeper is better",
            gaps,
        ),
    ]
    caption = (
        "MACs: multiply-adds for one image. Small dots are seeds, the large one is their mean, "
        "the bar its 95 % interval."
    )
    return [Figure(rows_figure(panels, out / "error.png"), caption)]


METHOD = [
    "Adding layers to a network also adds parameters and arithmetic. Here depth is changed at a "
    "fixed budget: the deeper network is thinner, so that multiply-adds (and nearly parameters) "
    "stay the same. All are residual networks of 6n + 2 layers with batch norm (He et al. 2015, "
    "section 4.2). Each is trained once at each rate; the rate of the lowest training error is "
    "used."
]
LIMITS = [
    "Four claims stand on 95 % intervals of their own; by chance alone one in twenty would miss "
    "its truth.",
    "Equal multiply-adds are not equal time: the deeper network takes longer on every machine, "
    "for its layers wait for each other.",
]
STUDY = Study(
    name="depth_or_width",
    lecture=(
        "Deeper is better: from 8 layers in 2012 to 152 in 2015, the error fell with every step "
        "in depth"
    ),
    title="Is deeper better, or only larger?",
    question=(
        "The winners grew deeper, and larger with it. When the budget is fixed, is it still the "
        "deeper network that wins?"
    ),
    presets=PRESETS,
    arms=make_arms,
    judge=judge,
    draw=draw,
    tables=lambda results: [cost_table(results.costs)],
    method=lambda results: METHOD,
    limits=lambda results: LIMITS,
)

if __name__ == "__main__":
    run_command(lambda: run_study(STUDY, parse(Options)))
