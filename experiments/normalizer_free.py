"""What does batch norm do for depth, and do the schemes without it do the same?

Fixup (Zhang et al. 2019, arXiv:1901.09321), SkipInit (De and Smith 2020, arXiv:2002.10444),
ReZero (Bachlechner et al. 2020, arXiv:2003.04887), NF-ResNet (Brock et al. 2021, arXiv:2101.08692).

python experiments/normalizer_free.py           # digits: about three minutes on two CPU cores
python experiments/normalizer_free.py --dataset fashion_mnist
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from deepjax.command_line import parse, run_command
from deepjax.models import create_model
from deepjax.study.arms import Arm
from deepjax.study.report.html import Figure
from deepjax.study.report.metrics import largest_rate
from deepjax.study.report.plots import lines_figure, rate_curves, rows_figure
from deepjax.study.runner import run_study
from deepjax.study.stats.claims import compare_errors, compare_gains
from deepjax.study.stats.rules import Rule, above, all_below
from deepjax.study.stats.verdict import NOT_SUPPORTED, Verdict
from deepjax.study.study import Options, Preset, Study, StudyResults, make_arm

# The arms: equal shapes, two depths. ReZero is used without the batch norm that its authors keep:
# can it replace batch norm?
SHALLOW, DEEP = 20, 56
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "batch": ("cifar_resnet", {}),
    "none": ("cifar_resnet", {"norm": "none"}),
    "fixup": ("cifar_fixup", {}),
    "skipinit": ("cifar_skipinit", {}),
    "rezero": ("cifar_rezero", {"norm": "none"}),
    "nf": ("cifar_nf", {}),
}
LABELS = {
    "batch": "batch norm",
    "none": "nothing",
    "fixup": "Fixup",
    "skipinit": "SkipInit",
    "rezero": "ReZero",
    "nf": "NF-ResNet",
}
SCHEMES = ("fixup", "skipinit", "rezero", "nf")

# Rules, fixed before the runs. MARGIN is half of the four points by which Fixup alone is worse than
# batch norm on ImageNet (27.6 against 23.6 %, Zhang et al. 2019). Training error, since the
# question is what can be optimised. Controls: a network without batch norm and without a scheme
# must not be judged to train as well, and the network with batch norm must not be judged worse for
# its depth.
MARGIN = 0.02
WORSE = above("the difference (a fraction of the images)", MARGIN)
AS_WELL = Rule(
    f"Supported if the interval lies below +{100 * MARGIN:g} points; refuted if above; else "
    "inconclusive.",
    partial(all_below, bound=MARGIN),
)
PRESETS = {
    # Chosen on seed 1000, so that batch norm, Fixup and NF-ResNet train; with neither norm nor
    # scheme no rate from 0.01 to 1e-5 did. A first run on the study's seeds had no 3e-5 and stopped
    # when no rate of seed 0 stayed finite in that arm, before any other arm had finished.
    "digits": Preset(
        "at 56 layers no training with neither scheme nor norm; the schemes a few points behind "
        "batch norm in so short a training (pilots: 5.6 % with Fixup, 2.4 % with NF-ResNet after "
        "12 epochs)",
        rates=(0.3, 0.1, 0.01, 3e-5),
        training={"epochs": 9, "batch_size": 64, "width": 8, "warmup_epochs": 2.0},
    ),
    "fashion_mnist": Preset(
        "as on digits; no source is known for so short a training",
        rates=(0.3, 0.1, 0.01, 3e-5),
        training={
            "epochs": 1,
            "batch_size": 64,
            "steps": 500,
            "width": 8,
            "image_size": 14,
            "warmup_epochs": 0.1,
        },
    ),
    "cifar10": Preset(
        "ResNet-56's test error 6.27 % with batch norm, 6.58 % with ReZero beside it "
        "(Bachlechner et al.); not measured here",
        rates=(0.3, 0.1, 0.03, 0.01, 3e-5),
        training={"epochs": 200, "batch_size": 128, "schedule": "step"},
    ),
}


def make_arms(options: Options, preset: Preset) -> dict[str, Arm]:
    """Each network at 56 layers, and with and without batch norm at 20: batch56, ..., none20."""
    arms = {}
    for depth, kinds in ((DEEP, NETWORKS), (SHALLOW, ("batch", "none"))):
        for kind in kinds:
            family, fields = NETWORKS[kind]
            name, model = f"{kind}{depth}", f"{family}{depth}"
            make = partial(create_model, model, **fields) if fields else None
            model = f"own/{model}_bare" if fields else model
            arms[name] = make_arm(name, model, options, preset, make)
    return arms


def judge(results: StudyResults) -> list[Verdict]:
    """Six claims, and two controls by the same rules."""

    def compare(claim: str, one: str, other: str, rule: Rule, **more: Any) -> Verdict:
        first, second = (
            (f"{LABELS[name[:-2]]} at {name[-2:]} layers", results.arms[name])
            for name in (one, other)
        )
        return compare_errors(claim, first, second, rule, sets=("train",), **more)

    def as_well(kind: str, **more: Any) -> Verdict:
        claim = (
            f"With {LABELS[kind]} in place of batch norm, a residual network of {DEEP} layers "
            "trains as well."
        )
        return compare(claim, f"{kind}{DEEP}", f"batch{DEEP}", AS_WELL, **more)

    pairs = {
        f"{d} layers": (results.arms[f"none{d}"], results.arms[f"batch{d}"])
        for d in (DEEP, SHALLOW)
    }
    costs = (
        f"Taking batch norm out costs a residual network of {DEEP} layers more than one of "
        f"{SHALLOW}."
    )
    without = (
        f"Without batch norm, and with nothing in its place, a residual network of {DEEP} layers "
        "trains worse."
    )
    deeper = (
        f"With batch norm, a residual network of {DEEP} layers trains worse than one of {SHALLOW}."
    )
    return [
        compare(without, f"none{DEEP}", f"batch{DEEP}", WORSE),
        compare_gains(costs, pairs, "train_error", above("the difference", 0.0)),
        *map(as_well, SCHEMES),
        as_well("none", control=NOT_SUPPORTED),
        compare(deeper, f"batch{DEEP}", f"batch{SHALLOW}", WORSE, control=NOT_SUPPORTED),
    ]


def draw(results: StudyResults, out: Path) -> list[Figure]:
    """Training error by arm, and by learning rate."""
    errors, tried = [], []
    for depth in (SHALLOW, DEEP):
        arms = {
            LABELS[kind]: results.arms[f"{kind}{depth}"]
            for kind in NETWORKS
            if f"{kind}{depth}" in results.arms
        }
        rows = {
            label: [100 * error for error in arm.final("train_error")]
            for label, arm in arms.items()
        }
        ends = ", ".join(
            f"with {LABELS[kind]} {np.mean(rows[LABELS[kind]]):.1f} %" for kind in ("batch", "none")
        )
        errors.append((f"{depth} layers: {ends}", "training error (%)", rows))
        largest = ", ".join(
            f"{LABELS[kind]} {largest_rate(arms[LABELS[kind]])}" for kind in ("batch", "none")
        )
        tried.append((f"{depth} layers, largest rate that trains:\n{largest}", rate_curves(arms)))
    return [
        Figure(
            rows_figure(errors, out / "training_error.png"),
            "Final training error at each arm's best rate: seeds, their mean, and its 95 % "
            "interval.",
        ),
        Figure(
            lines_figure(
                tried, out / "rates.png", "learning rate", "training error (%)", x_scale="log"
            ),
            "Final training error by learning rate, first seed; 100 % where numbers were not "
            "finite. A rate trains if it ends under 50 %: one seed, so this is described and not "
            "judged.",
        ),
    ]


STUDY = Study(
    name="normalizer_free",
    lecture=(
        "Batch norm is what lets a deep network be trained; a residual network has it after every "
        "convolution"
    ),
    title="What does batch norm do for depth?",
    question=(
        "Shortcuts alone do not make a deep network trainable: each block adds its branch, and "
        "the variance doubles. Batch norm keeps branches small beside the shortcut (De and Smith "
        "2020). Do schemes that make them small otherwise do as well?"
    ),
    presets=PRESETS,
    arms=make_arms,
    judge=judge,
    draw=draw,
    method=lambda results: [
        "Equal shapes, equal training, the best of the same rates for each. Every scheme is as "
        "its authors' code has it, but for ReZero: its authors keep batch norm beside the scalar, "
        "and here the scalar is alone."
    ],
    limits=lambda results: [
        "Four schemes have four verdicts, and no interval is widened for their number. How batch "
        "norm regularises is not seen."
    ],
)

if __name__ == "__main__":
    run_command(lambda: run_study(STUDY, parse(Options)))
