"""What does the chart of ImageNet's winners show? Published numbers; nothing is run.

python experiments/imagenet_history.py                  # the chart and the tables, in seconds
python experiments/imagenet_history.py --preset small   # with verdicts
"""

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import pairwise

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from deepjax.analysis.plots import COLORS, STYLE
from deepjax.command_line import parse, run_command
from deepjax.html_page import Table
from deepjax.study.claim import ExactClaim
from deepjax.study.preset import Preset
from deepjax.study.report.study_figures import StudyFigure
from deepjax.study.results import StudyResults
from deepjax.study.runner import run_study
from deepjax.study.study import Options, Study

# Published numbers.


@dataclasses.dataclass(frozen=True)
class Winner:
    """The winner of a year's classification task (ILSVRC)."""

    year: int
    entry: str
    error: float
    """Top-5 error on the test set in per cent, trained without other images."""
    layers: int
    """As charted."""
    networks: str
    """How many the entry averages."""
    caveat: str
    source: str


WINNERS = (
    Winner(
        2012, "AlexNet", 16.4, 8, "5",
        "one network has 18.2; 15.3 with ImageNet-22k",
        "Krizhevsky et al. 2012, Table 2",
    ),
    Winner(
        2013, "Clarifai", 11.7, 8, "several",
        "often charted as ZFNet, whose own entry of 6 networks has 14.8, and with its layers; 11.2 "
        "with ImageNet-22k",
        "image-net.org, results of 2013; Szegedy et al. 2014, Table 2",
    ),
    Winner(
        2014, "GoogLeNet", 6.67, 22, "7",
        "with 144 crops an image; one network with one crop has 10.07 on validation images; VGG, "
        "of 19 layers, is second with 7.3",
        "Szegedy et al. 2014, Tables 2 and 3",
    ),
    Winner(
        2015, "ResNet", 3.57, 152, "6",
        "only two of the six have 152 layers",
        "He et al. 2015, Table 5",
    ),
    Winner(
        2016, "Trimps-Soushen", 2.99, 152, "several",
        "an ensemble; the layers are as charted",
        "image-net.org, results of 2016",
    ),
    Winner(
        2017, "SENet", 2.25, 152, "several",
        "an ensemble; the layers are as charted",
        "image-net.org, results of 2017; Hu et al. 2018",
    ),
)  # fmt: skip
HUMAN = 5.1
"""Top-5 error in per cent of one trained annotator, on a sample of the test set (Karpathy 2014)."""
# Top-5 error of ResNet-152 by protocol (He et al. 2015, Tables 3 to 5; the authors' release).
RESNET = {
    "six networks, several scales, test images": 3.57,
    "one network, several scales, validation images": 4.49,
    "one network, 10 crops, validation images": 5.71,
    "one network, 1 crop, validation images": 6.7,
}
# One network, ten crops, validation images (Krizhevsky et al. 2012, Table 2 and section 4.1;
# Szegedy et al. 2014, Table 3; He et al. 2015, Table 3).
TEN_CROPS = {"AlexNet": 18.2, "GoogLeNet": 9.15, "ResNet": 5.71}

# Rules.


def falls(numbers: Sequence[float]) -> bool:
    """Whether each number is below the one before."""
    return all(later < earlier for earlier, later in pairwise(numbers))


def listed(numbers: Mapping[str, float], unit: str) -> str:
    """'2012: 16.4 %, 2013: 11.7 %'."""
    return ", ".join(f"{name}: {number:g}{unit}" for name, number in numbers.items())


def error_falls() -> tuple[bool, str]:
    """Whether the winner's error fell every year."""
    errors = {str(winner.year): winner.error for winner in WINNERS}
    return falls(list(errors.values())), listed(errors, " %")


def each_is_deeper() -> tuple[bool, str]:
    """Whether every winner has more layers than the one before."""
    layers = {str(winner.year): winner.layers for winner in WINNERS}
    return falls([-number for number in layers.values()]), listed(layers, " layers")


def one_network_falls() -> tuple[bool, str]:
    """Whether the error of one network fell too, at an equal number of crops."""
    return falls(list(TEN_CROPS.values())), listed(TEN_CROPS, " %")


def entry_beats_human() -> tuple[bool, str]:
    """Whether the winning entry of 2015 has a lower error than the annotator."""
    entry = next(iter(RESNET.values()))
    return entry < HUMAN, f"ResNet: {entry:g} %, annotator: {HUMAN:g} %"


def every_protocol_beats_human() -> tuple[bool, str]:
    """Whether ResNet-152 has a lower error than the annotator by every protocol."""
    return all(error < HUMAN for error in RESNET.values()), listed(RESNET, " %")


CLAIMS = (
    ExactClaim(
        "The winner's error fell with every year from 2012 to 2017.",
        "Supported if the published errors fall from each year to the next; else refuted.",
        error_falls, headline=True,
    ),
    ExactClaim(
        "Each winner was deeper than the last.",
        "Supported if the layers, as charted, rise from each year to the next; else refuted.",
        each_is_deeper, headline=True,
    ),
    ExactClaim(
        "ResNet is better than a human: its winning entry, of six networks, has a lower error than "
        "one trained annotator.",
        f"Supported if the top-5 error of the entry on test images is below {HUMAN} %; else "
        "refuted.",
        entry_beats_human, headline=True,
    ),
    ExactClaim(
        "ResNet-152 is better than the annotator by every protocol that was published.",
        f"Supported if its top-5 error is below {HUMAN} % by each protocol; else refuted.",
        every_protocol_beats_human,
    ),
    ExactClaim(
        "The error of one network with ten crops fell too, from AlexNet to GoogLeNet to ResNet.",
        "Supported if the published errors on validation images fall; else refuted.",
        one_network_falls,
    ),
)  # fmt: skip


def winners_chart(results: StudyResults, title: str) -> Figure:
    """Bars of the winners' errors, with single networks and the annotator."""
    years = [str(winner.year) for winner in WINNERS]
    with plt.style.context(STYLE):
        figure, ax = plt.subplots(figsize=(9, 4.4))
        ax.axhline(HUMAN, color=COLORS[1], linestyle="--", linewidth=1.2, zorder=1)
        ax.annotate(
            f"one annotator, {HUMAN} %", (5.45, HUMAN + 0.15), ha="right", va="bottom",
            color=COLORS[1], fontsize=9,
        )  # fmt: skip
        bars = ax.bar(years, [w.error for w in WINNERS], color=COLORS[0], width=0.62, zorder=2)
        labels = [f"{w.entry}\n{w.error:g} %, {w.layers} layers" for w in WINNERS]
        box = {"color": "white", "pad": 0.5}
        ax.bar_label(bars, labels, fontsize=9, padding=3, bbox=box, zorder=3)
        single = {w.year: TEN_CROPS[w.entry] for w in WINNERS if w.entry in TEN_CROPS}
        ax.plot(
            [year - WINNERS[0].year + 0.4 for year in single], list(single.values()), "D",
            color=COLORS[4], markersize=6, zorder=4, label="one network, ten crops",
        )  # fmt: skip
        ax.legend(loc="upper right")
        ax.set(ylabel="top-5 error (%)", ylim=(0, 20.5))
        ax.grid(visible=False, axis="x")
        figure.suptitle(title)
    return figure


def winners_table(results: StudyResults) -> Table:
    """The winners with what each number hides."""
    rows = [
        (str(w.year), w.entry, f"{w.error:g} %", str(w.layers), w.networks, w.caveat, w.source)
        for w in WINNERS
    ]
    header = ("year", "entry", "top-5 error", "layers", "networks", "caveat", "source")
    return Table(
        "The winners of the classification task, trained without other images", header, rows
    )


def protocol_table(results: StudyResults) -> Table:
    """ResNet-152 by protocol."""
    rows = [
        (name, f"{error:g} %", "below" if error < HUMAN else "above")
        for name, error in RESNET.items()
    ]
    caption = f"ResNet-152 by protocol, and one trained annotator ({HUMAN} %; Karpathy 2014)"
    return Table(caption, ("protocol", "top-5 error", "annotator's"), rows)


FIGURES = (
    StudyFigure(
        "winners", winners_chart,
        "The winners of ImageNet's classification task. Every entry is an ensemble; diamonds: one "
        "network with ten crops, on validation images.",
        "The winner's error fell",
    ),
)  # fmt: skip
STUDY = Study(
    name="imagenet_history",
    title="What does the chart of ImageNet's winners show?",
    lecture=(
        "the ImageNet benchmark: each winner deeper and better, until the error is below a human's"
    ),
    # Nothing is run, so there are no seeds; a preset needs the name of a data set.
    presets={
        "quick": Preset("fashion_mnist_small", 0, judged=False),
        "small": Preset("fashion_mnist_small", 0),
    },
    claims=CLAIMS,
    figures=FIGURES,
    tables=(winners_table, protocol_table),
    method=(
        "The numbers are those of the papers and of image-net.org; the tables give the source of "
        "each and what it hides."
    ),
    limits=(
        "Entries differ in data augmentation, crops and number of networks as much as in depth, so "
        "the chart is no experiment on depth."
    ),
)

if __name__ == "__main__":
    run_command(lambda: run_study(STUDY, parse(Options)))
