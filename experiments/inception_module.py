"""What does the 1x1 bottleneck of an Inception module save, and is each branch needed? (Szegedy et al. 2014, arXiv:1409.4842)

python experiments/inception_module.py                                  # digits: about three minutes on two CPU cores
python experiments/inception_module.py --dataset fashion_mnist
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from deepjax.analysis import macs_by_layer
from deepjax.command_line import parse, run
from deepjax.study.arms import Arm
from deepjax.study.cost import budgets_of, cost_table
from deepjax.study.inceptions import (
    BRANCHES,
    SLIDE_INPUT,
    InceptionNet,
    TrainingStep,
    median_seconds,
    slide_module,
)
from deepjax.study.report.html import Figure
from deepjax.study.report.plots import rows_figure
from deepjax.study.stats.contest import ablation_verdict, better, error_panel
from deepjax.study.stats.rules import above, exact_verdict
from deepjax.study.stats.verdict import Verdict
from deepjax.study.study import (
    Options,
    Preset,
    SeedContext,
    Study,
    StudyResults,
    make_arm,
    run_study,
)

# The rules, fixed before the runs; those of accuracy stand in study/stats/contest.py. Controls: the rule that judges 358 million
# must let 854 million stand; a module must not be found twice as fast as itself; and modules cut down to their 1x1 branch, which
# see no neighbours, must be found worse than naive ones.
NAIVE, BOTTLENECK = 854_196_224, 271_351_808
COUNTS = "Worked out, not measured: supported if the modules' multiply-adds are these, to the last; else refuted."
TAUGHT = "Worked out, not measured: supported if the multiply-adds round to the millions that are taught; else refuted."
SAVES = above("naive over bottleneck", 2.0)  # of 3.15 times in multiply-adds
SPARE = 0.01  # a branch without which the error rises by less is not needed

# Half the width makes two naive modules as dear as two with bottleneck, to 0.1 %; with the stem, the naive network is 4 % cheaper.
NETWORKS: dict[str, tuple[float, dict[str, Any]]] = {
    "bottleneck": (1.0, {}),
    "naive": (0.5, {"reduce": False}),
    **{f"without_{branch}": (1.0, {"without": (branch,)}) for branch in BRANCHES},
    "only_1x1": (1.0, {"without": ("3x3", "5x5", "pool")}),
}
PAPER = "no source: 6.67 % top-5 error of GoogLeNet on ImageNet is of bottlenecks with all branches"
SHARED: dict[str, Any] = {"seeds": 5, "rates": (0.1, 0.03), "sizes": {"batch": 4, "repeats": 5}}
PRESETS = {  # digits in 10 epochs: in 6 the networks were not trained (a pilot, seed 1000)
    "digits": Preset(
        PAPER, training={"epochs": 10, "batch_size": 64, "width": 16, "image_size": 16}, **SHARED
    ),
    "fashion_mnist": Preset(
        PAPER,
        training={"steps": 300, "batch_size": 128, "width": 16, "warmup_epochs": 0.1},
        **SHARED,
    ),
    "cifar10": Preset(
        f"{PAPER}; not measured here",
        training={"epochs": 60, "batch_size": 128, "width": 256},
        **SHARED,
    ),
}


def make_arms(options: Options, preset: Preset) -> dict[str, Arm]:
    """An arm for each network."""
    arms = {}
    for name, (share, fields) in NETWORKS.items():
        width = int(preset.training["width"] * share)
        arms[name] = make_arm(
            name,
            f"own/inception_{name}",
            options,
            preset,
            partial(InceptionNet, **fields),
            width=width,
        )
    return arms


def measure(subject: SeedContext) -> dict[str, Any]:
    """Time and memory of a training step of the slide's modules, naive over bottleneck, and of the latter over itself."""
    steps = {
        reduce: TrainingStep(reduce, subject.preset.sizes["batch"], subject.seed)
        for reduce in (False, True)
    }
    named = {"naive": steps[False], "bottleneck": steps[True], "itself": steps[True]}
    seconds = median_seconds(named, subject.preset.sizes["repeats"])
    return {
        "seconds": seconds,
        "bytes": {name: step.temporary_bytes for name, step in named.items()},
    }


def judge(evidence: StudyResults) -> list[Verdict]:
    """Six claims, and a control of three of their rules."""
    macs = {
        name: macs_by_layer(slide_module(name == "bottleneck"), SLIDE_INPUT)
        for name in ("naive", "bottleneck")
    }
    sums, three = (
        {name: sum(by_layer.values()) for name, by_layer in macs.items()},
        macs["bottleneck"]["conv3x3"],
    )
    arms, known = evidence.arms, budgets_of(make_arms(evidence.options, evidence.preset))
    slide = "the slide's module on 28 x 28 x 256 (cs231n 2017, lecture 9)"

    def taught(name: str, millions: int, *working: str, **more: Any) -> Verdict:
        claim = f"The {name} module takes {millions} million multiply-adds, as is widely taught."
        holds, found = (
            round(sums[name] / 1e6) == millions,
            f"the {name} module's terms add up to {sums[name]:,}",
        )
        return exact_verdict(
            claim, f"Multiply-adds of {slide}, traced.", TAUGHT, holds, found, *working, **more
        )

    def saves(
        claim: str, key: str, first: str = "naive", second: str = "bottleneck", **more: Any
    ) -> Verdict:
        pairs = zip(evidence.values(key, first), evidence.values(key, second), strict=True)
        how = f"Training step of {slide}, {evidence.preset.sizes['batch']} images, float32; ratio by seed, Student's 95 % interval."
        return SAVES.verdict(
            claim, how, {f"{key}, {first} over {second}": [a / b for a, b in pairs]}, **more
        )

    claim = f"The naive module takes {NAIVE:,} multiply-adds, that with bottleneck {BOTTLENECK:,}."
    counted = f"naive {sums['naive']:,}, bottleneck {sums['bottleneck']:,}: {sums['naive'] / sums['bottleneck']:.2f} to 1"
    exact = sums == {"naive": NAIVE, "bottleneck": BOTTLENECK}
    slip = f"{sums['bottleneck']:,} + {three:,}, the 3x3 term a second time, are {sums['bottleneck'] + three:,}"
    equal, alone = (
        "At equal multiply-adds modules with bottleneck are more accurate.",
        "The 1x1 branches alone are more accurate.",
    )
    without = {f"the {branch} branch": arms[f"without_{branch}"] for branch in BRANCHES}
    return [
        exact_verdict(claim, f"Multiply-adds of {slide}, traced.", COUNTS, exact, counted),
        taught("bottleneck", 358, slip),
        saves("The bottleneck at least halves the time of a training step.", "seconds"),
        saves("The bottleneck at least halves the memory of a training step.", "bytes"),
        better(equal, "bottleneck", "naive", arms, known),
        ablation_verdict(
            "Each of the four branches is needed: without it the test error rises.",
            arms["bottleneck"],
            without,
            SPARE,
        ),
        taught("naive", 854, control=("supported",)),
        saves(
            "Against itself the bottleneck halves the time.",
            "seconds",
            "bottleneck",
            "itself",
            control=("refuted",),
        ),
        better(alone, "only_1x1", "naive", arms, known, control=("refuted",)),
    ]


def draw(evidence: StudyResults, out: Path) -> list[Figure]:
    """What the naive module takes in times of the other; errors of each network but the control, which would stretch the axis."""
    budgets, names = (
        budgets_of(make_arms(evidence.options, evidence.preset)),
        [name for name in NETWORKS if name != "only_1x1"],
    )
    errors = [
        error_panel(names, evidence.arms, budgets, which, "bottleneck", ("naive",))
        for which in ("test", "train")
    ]
    steps = {"multiply-adds": [NAIVE / BOTTLENECK] * 2}
    for key, label in (
        ("seconds", "time of a training step"),
        ("bytes", "memory of a training step"),
    ):
        pairs = zip(evidence.values(key, "naive"), evidence.values(key, "bottleneck"), strict=True)
        steps[label] = [one / other for one, other in pairs]
    maths, clock, memory = (float(np.mean(ratios)) for ratios in steps.values())
    title = f"The naive module takes {maths:.2f} times the multiply-adds,\n{clock:.2f} times the time and {memory:.2f} times the memory"
    panel = (title, "naive module over that with bottleneck (times)", steps)
    bars = "seeds as dots, their mean, and its 95 % interval as a bar."
    return [
        Figure(
            rows_figure([panel], out / "step.png"),
            f"A training step of the slide's module on 28 x 28 x 256: {bars}",
        ),
        Figure(
            rows_figure(errors, out / "error.png"),
            f"Final error on {evidence.options.dataset}: {bars}",
        ),
    ]


METHOD = "A network is a 3x3 convolution, two of the slide's modules scaled to its width, a 3x3 max pool of stride 2 between them, an \
average pool and a linear layer, all with batch norm. Naive modules have half the width, which makes their cost that of the others."
LIMITS = [
    "A network without a branch has also fewer channels, weights and multiply-adds; the other branches were not made wider for it.",
    "Four branches are four looks: one that is worth exactly 1 point each would be called spare in up to 10 % of studies.",
]
STUDY = Study(
    name="inception_module",
    lecture="GoogLeNet: filters of many sizes at once; the naive module is too costly; 1x1 bottlenecks make it affordable",
    title="What does the 1x1 bottleneck save, and is each branch of an Inception module needed?",
    question="A naive Inception module runs every filter size over all channels. What does it save to reduce them first: on paper, "
    "on the clock, in memory; what does that do for accuracy at equal cost; and does each filter size earn its place?",
    presets=PRESETS,
    arms=make_arms,
    measure=measure,
    judge=judge,
    draw=draw,
    method=lambda evidence: [METHOD],
    limits=lambda evidence: LIMITS,
    tables=lambda evidence: [cost_table(budgets_of(make_arms(evidence.options, evidence.preset)))],
)

if __name__ == "__main__":
    run(lambda: run_study(STUDY, parse(Options)))
