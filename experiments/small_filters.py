"""Are three 3x3 convolutions better than one 7x7, and what does each cost? (Simonyan and Zisserman 2014, section 2.3)

python experiments/small_filters.py                                     # digits: about two minutes on two CPU cores
python experiments/small_filters.py --dataset fashion_mnist
"""

from functools import partial
from pathlib import Path
from typing import Any

from deepjax.command_line import parse, run
from deepjax.study.arms import Arm
from deepjax.study.cost import budgets_of, cost_table
from deepjax.study.filters import Stages, filter_cost
from deepjax.study.report.html import Figure
from deepjax.study.report.plots import rows_figure
from deepjax.study.stats.contest import better, error_panel, no_better
from deepjax.study.stats.rules import exact_verdict
from deepjax.study.stats.verdict import Verdict
from deepjax.study.study import Options, Preset, Study, StudyResults, make_arm, run_study

# The rules, fixed before the runs; those of accuracy stand in study/stats/contest.py. Controls: six 3x3 have more weights than
# one 7x7; one 7x7 keeps fewer activations than three 3x3; and three 1x1 filters, which see nothing around a pixel but what stem and
# pool show, must be found worse than one 7x7.
CHEAPER = (
    "Worked out, not measured: supported if fewer, both weights and multiply-adds; else refuted."
)
SMALLER = "Worked out, not measured: supported if the outputs of the convolutions have no more bytes; else refuted."
MARGIN = 0.01  # a gain of accuracy that would count

CHANNELS, SIDE = 256, 56  # of the exact counts: VGG's third stage
# Kernels of a stage; whether it has but one ReLU; width in quarters of the preset's. 49 (3/4)^2 = 27.56: a 7x7 of three quarters of
# the width has 2 % more weights than three 3x3, and, all being of stride 1, as many more multiply-adds.
NETWORKS = {
    "one_7x7": ((7,), False, 4),
    "three_3x3": ((3, 3, 3), False, 4),
    "three_linear_3x3": ((3, 3, 3), True, 4),
    "one_narrow_7x7": ((7,), False, 3),
    "three_1x1": ((1, 1, 1), False, 4),
}
VGG = "three 3x3 are better: with one 5x5 for two 3x3, VGG-B has 7 % more top-1 error on ImageNet (Simonyan and Zisserman, 4.1)"
SHARED: dict[str, Any] = {"seeds": 5, "rates": (0.1, 0.03)}
PRESETS = {  # digits are enlarged, as on 8 pixels two 7x7 see everything; 16 epochs, as in 8 the stack was not trained (seed 1000)
    "digits": Preset(
        VGG, training={"epochs": 16, "batch_size": 64, "width": 8, "image_size": 16}, **SHARED
    ),
    "fashion_mnist": Preset(
        VGG, training={"steps": 400, "batch_size": 128, "width": 8, "warmup_epochs": 0.1}, **SHARED
    ),
    "cifar10": Preset(
        f"{VGG}; not measured here",
        training={"epochs": 60, "batch_size": 128, "width": 64},
        **SHARED,
    ),
}


def make_arms(options: Options, preset: Preset) -> dict[str, Arm]:
    """An arm for each network."""
    arms = {}
    for name, (kernels, linear, quarters) in NETWORKS.items():
        make, width = (
            partial(Stages, kernels, linear=linear),
            preset.training["width"] * quarters // 4,
        )
        arms[name] = make_arm(name, f"own/{name}", options, preset, make, width=width)
    return arms


def judge(evidence: StudyResults) -> list[Verdict]:
    """Two claims on cost, four on accuracy, and a control of each kind."""
    arms, known = evidence.arms, budgets_of(make_arms(evidence.options, evidence.preset))

    def cheaper(count: str, layers: int, **more: Any) -> Verdict:
        one, other = filter_cost((3,) * layers, CHANNELS, SIDE), filter_cost((7,), CHANNELS, SIDE)
        weights = f"{one.weights:,} weights ({9 * layers} C^2) against {other.weights:,} (49 C^2): {one.weights / other.weights:.0%}"
        macs = f"{one.macs:,} multiply-adds against {other.macs:,} on {SIDE} x {SIDE} pixels, C = {CHANNELS}"
        holds = one.weights < other.weights and one.macs < other.macs
        claim = f"{count} 3x3 convolutions cost less than one 7x7: fewer weights and multiply-adds."
        return exact_verdict(
            claim, "From the traced computation.", CHEAPER, holds, weights, macs, **more
        )

    def smaller(
        claim: str, first: tuple[int, ...], second: tuple[int, ...], **more: Any
    ) -> Verdict:
        one, other = (
            filter_cost(kernels, CHANNELS, SIDE).activations for kernels in (first, second)
        )
        found = f"{one:,} bytes an image against {other:,}: {one / other:.0%}"
        return exact_verdict(
            claim, "Outputs of the convolutions in float32.", SMALLER, one <= other, found, **more
        )

    return [
        cheaper("Three", 3),
        smaller("Three 3x3 convolutions keep no more activations than one 7x7.", (3, 3, 3), (7,)),
        better(
            "At equal field and width three 3x3 are more accurate than one 7x7.",
            "three_3x3",
            "one_7x7",
            arms,
            known,
        ),
        better(
            "At equal field and cost three 3x3 are more accurate than one 7x7.",
            "three_3x3",
            "one_narrow_7x7",
            arms,
            known,
        ),
        better(
            "Its nonlinearities help: the stack is better than a linear one.",
            "three_3x3",
            "three_linear_3x3",
            arms,
            known,
        ),
        no_better(
            "Depth alone does not: a linear stack is no better than one 7x7.",
            "three_linear_3x3",
            "one_7x7",
            arms,
            known,
            MARGIN,
        ),
        cheaper("Six", 6, control=("refuted",)),
        smaller(
            "One 7x7 convolution keeps no more activations than three 3x3.",
            (7,),
            (3, 3, 3),
            control=("supported",),
        ),
        better(
            "Three 1x1 are more accurate than one 7x7.",
            "three_1x1",
            "one_7x7",
            arms,
            known,
            control=("refuted",),
        ),
    ]


def draw(evidence: StudyResults, out: Path) -> list[Figure]:
    """Test and training error of each network but the control, which would stretch the axis, with its cost."""
    budgets, names = (
        budgets_of(make_arms(evidence.options, evidence.preset)),
        [name for name in NETWORKS if name != "three_1x1"],
    )
    against = ("one_7x7", "one_narrow_7x7", "three_linear_3x3")
    panels = [
        error_panel(names, evidence.arms, budgets, which, "three_3x3", against)
        for which in ("test", "train")
    ]
    caption = f"Final error on {evidence.options.dataset}: seeds as dots, their mean, and its 95 % interval as a bar."
    return [Figure(rows_figure(panels, out / "error.png"), caption)]


METHOD = "Every network is a 3x3 convolution, two stages with a 2x2 max pool between them, an average pool and a linear layer; only \
the stages differ. Each unit at a stage's end sees 7 x 7 units of its start, in the 1x1 stack one. A linear stack has batch norm \
between its convolutions, which in evaluation is linear, and its only ReLU at the end, where one 7x7 has its own."
STUDY = Study(
    name="small_filters",
    lecture="VGG: small filters, deeper networks: the field of one 7x7, more nonlinearities, fewer parameters",
    title="Are three 3x3 convolutions better than one 7x7, and what does each cost?",
    question="Three 3x3 convolutions see the same 7x7 pixels with 27 C^2 weights in place of 49 C^2. Is it the weights that make "
    "the stack better, the depth, or the nonlinearities, and what does it cost?",
    presets=PRESETS,
    arms=make_arms,
    judge=judge,
    draw=draw,
    method=lambda evidence: [METHOD],
    limits=lambda evidence: [
        "Networks of two stages and few filters; VGG's have five stages and up to 512 filters."
    ],
    tables=lambda evidence: [cost_table(budgets_of(make_arms(evidence.options, evidence.preset)))],
)

if __name__ == "__main__":
    run(lambda: run_study(STUDY, parse(Options)))
