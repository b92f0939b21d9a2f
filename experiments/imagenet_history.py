"""The ImageNet challenge in one chart: the winners' numbers, and the three families compared here.

python experiments/imagenet_history.py          # digits: one to two minutes on two CPU cores
python experiments/imagenet_history.py --dataset fashion_mnist
"""

from collections import namedtuple
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from deepjax.analysis.plots import COLORS, STYLE, save
from deepjax.command_line import parse, run_command
from deepjax.study.arms import Arm
from deepjax.study.report.html import Figure, Table
from deepjax.study.report.plots import rows_figure
from deepjax.study.runner import run_study
from deepjax.study.stats.claims import compare_errors
from deepjax.study.stats.intervals import percent
from deepjax.study.stats.rules import Rule, all_above, exact_verdict
from deepjax.study.stats.verdict import NOT_SUPPORTED, Verdict
from deepjax.study.study import Options, Preset, Study, StudyResults, make_arm

# A bar of the chart: top-5 error in per cent on the test set, layers as charted, and a caveat.
Winner = namedtuple("Winner", ("year", "entry", "error", "layers", "trap"))
# He et al. 2015; Simonyan and Zisserman 2014, Table 7; Szegedy et al. 2014, Table 2; image-net.org
# for 2016 and 2017.
WINNERS = (
    Winner(2012, "AlexNet", 16.4, 8, "without outside data; 15.3 with ImageNet-22k"),
    Winner(
        2013,
        "Clarifai",
        11.7,
        8,
        "often charted as ZFNet, whose own entry had 14.8; 11.2 with outside data",
    ),
    Winner(
        2014,
        "GoogLeNet",
        6.67,
        22,
        "7 networks, 144 crops; one network and crop: 10.07 on validation. VGG came second: 7.3",
    ),
    Winner(2015, "ResNet", 3.57, 152, "6 networks, two of them of 152 layers"),
    Winner(2016, "Trimps-Soushen", 2.99, 152, "an ensemble; layers as charted only"),
    Winner(2017, "SENet", 2.25, 152, "an ensemble; layers as charted only"),
)
HUMAN = 5.1  # one trained annotator on a sample of the test set (Karpathy 2014), top-5
# ResNet-152's top-5 error by protocol (He et al. 2015, Tables 3 to 5, and the authors' release).
RESNET = {
    "6 networks, test": 3.57,
    "one, multi-scale": 4.49,
    "one, 10 crops": 5.71,
    "one, 1 crop": 6.7,
}
RULES = {
    "falls": "Arithmetic: supported if the numbers fall from each year to the next; else refuted.",
    "deeper": (
        "Arithmetic: supported if the layers as charted rise from each year to the next; else "
        "refuted."
    ),
    "human": (
        f"Supported if ResNet-152 is below {HUMAN} % by every protocol published; refuted if by "
        "none; else inconclusive."
    ),
}
RACE = Rule(
    "Supported if the earlier family's test error less the later's lies above 0 with its whole "
    "interval; refuted if below.",
    partial(all_above, bound=0.0),
)
FAMILIES = ("vgg11_bn", "googlenet_bn", "resnet18")
NARROW = {"width": 8, "image_size": 32, "auxiliary_weight": 0.0}
NOTHING = "nothing for the race: the networks are narrow, the training short"
CIFAR = (
    "test error of VGG-16-BN 7.4 %, ResNet-18 7.0 % (kuangliu/pytorch-cifar, 200 epochs); not "
    "measured here"
)
PRESETS = {
    "digits": Preset(NOTHING, rates=(0.1, 0.03), training=NARROW | {"epochs": 8, "batch_size": 64}),
    "fashion_mnist": Preset(
        NOTHING, rates=(0.1, 0.03), training=NARROW | {"epochs": 1, "steps": 300}
    ),
    "cifar10": Preset(CIFAR, rates=(0.1, 0.03), training={"epochs": 200, "auxiliary_weight": 0.0}),
}


def make_arms(options: Options, preset: Preset) -> dict[str, Arm]:
    """One arm a family, all with batch norm and one recipe."""
    return {name: make_arm(name, name, options, preset) for name in reversed(FAMILIES)}


def falling(numbers: Sequence[float]) -> bool:
    """Whether each is below the one before."""
    return all(later < earlier for earlier, later in pairwise(numbers))


def about_history(
    claim: str, rule: str, numbers: Sequence[float], holds: bool, **more: Any
) -> Verdict:
    """A claim about the chart: arithmetic on published numbers."""
    found = ", ".join(
        f"{winner.year}: {number:g}" for winner, number in zip(WINNERS, numbers, strict=True)
    )
    how = "The published numbers, year by year."
    return exact_verdict(claim, how, RULES[rule], holds, found, **more)


def judge(results: StudyResults) -> list[Verdict]:
    """The chart's claims, the race, and their controls."""
    errors, layers = [winner.error for winner in WINNERS], [winner.layers for winner in WINNERS]
    backwards = errors[::-1]
    below = [protocol for protocol, error in RESNET.items() if error < HUMAN]
    human = "supported" if len(below) == len(RESNET) else "inconclusive" if below else "refuted"
    found = tuple(f"{protocol}: {error:g} %" for protocol, error in RESNET.items())
    named = [(name, results.arms[name]) for name in FAMILIES]
    race = partial(compare_errors, rule=RACE, sets=("test",))
    return [
        about_history(
            "The winner's error fell with every year from 2012 to 2017.",
            "falls",
            errors,
            falling(errors),
        ),
        about_history(
            "Each winner was deeper than the last.",
            "deeper",
            layers,
            falling([-each for each in layers]),
        ),
        Verdict(
            "ResNet is better than a human.",
            "Top-5 error by protocol.",
            RULES["human"],
            human,
            found,
            {},
            {},
        ),
        race("GoogLeNet beats VGG here, as in 2014.", named[0], named[1]),
        race("ResNet beats GoogLeNet here, as in 2015.", named[1], named[2]),
        about_history(
            "Read backwards, the error falls too.",
            "falls",
            backwards,
            falling(backwards),
            control=("refuted",),
        ),
        race("ResNet beats itself.", named[2], named[2], control=NOT_SUPPORTED),
    ]


def draw(results: StudyResults, out: Path) -> list[Figure]:
    """The chart, redrawn with its traps; and the race."""
    with plt.style.context(STYLE):
        figure, ax = plt.subplots(figsize=(9, 4.2))
        ax.axhline(HUMAN, color=COLORS[1], linestyle="--", linewidth=1.2, zorder=1)
        ax.annotate(
            f"one annotator {HUMAN} %",
            (5.45, HUMAN + 0.15),
            ha="right",
            va="bottom",
            color=COLORS[1],
            fontsize=9,
        )
        bars = ax.bar(
            [str(w.year) for w in WINNERS],
            [w.error for w in WINNERS],
            color=COLORS[0],
            width=0.62,
            zorder=2,
        )
        labels = [f"{w.entry}\n{w.error:g} %, {w.layers} layers" for w in WINNERS]
        ax.bar_label(
            bars, labels, fontsize=9, padding=3, bbox={"color": "white", "pad": 0.5}, zorder=3
        )
        (first, *_, last) = WINNERS
        less, more = first.error / last.error, last.layers / first.layers
        title = f"ILSVRC: top-5 error fell {less:.1f}-fold in five years, layers rose {more:g}-fold"
        ax.set(title=title, ylabel="top-5 error (%)", ylim=(0, 19.5))
        ax.grid(visible=False, axis="x")
    path = save(figure, out / "winners.png")
    errors = {
        name: [100 * error for error in results.arms[name].final("test_error")] for name in FAMILIES
    }
    means = ", ".join(
        f"{name} {percent(results.arms[name].final('test_error'))}" for name in FAMILIES
    )
    race = rows_figure([(f"One recipe: {means}", "test error (%)", errors)], out / "race.png")
    return [
        Figure(
            path,
            "Winners of the classification task. All from 2014 on are ensembles; see the table "
            "for what each number hides.",
        ),
        Figure(
            race,
            f"Test error on {results.options.dataset}, one recipe for all; seeds, mean and 95 % "
            "interval.",
        ),
    ]


STUDY = Study(
    name="imagenet_history",
    lecture=(
        "the ImageNet benchmark: each winner deeper and better, until the error is below a human's"
    ),
    title="What does the chart of ImageNet's winners show?",
    question=(
        "Eight layers, then 22, then 152: did depth win ImageNet, and is a network better than a "
        "human?"
    ),
    presets=PRESETS,
    judge=judge,
    draw=draw,
    method=lambda results: [
        "The chart's numbers are those of the papers. The race trains each family by one and the "
        "same recipe."
    ],
    limits=lambda results: [
        "Entries differ in data, crops and number of networks as much as in depth: the chart is "
        "no experiment."
    ],
    arms=make_arms,
    tables=lambda results: [
        Table(
            "The winners, and the trap in each number",
            Winner._fields,
            [tuple(map(str, winner)) for winner in WINNERS],
        )
    ],
)

if __name__ == "__main__":
    run_command(lambda: run_study(STUDY, parse(Options)))
