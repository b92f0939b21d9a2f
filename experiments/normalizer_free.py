"""Does a residual network need batch norm, or do schemes that keep its branches small do as well?

Fixup (Zhang et al. 2019, arXiv:1901.09321), SkipInit (De and Smith 2020, arXiv:2002.10444),
ReZero (Bachlechner et al. 2020, arXiv:2003.04887), NF-ResNet (Brock et al. 2021, arXiv:2101.08692).

python experiments/normalizer_free.py                  # a minute on two cores, no verdicts
python experiments/normalizer_free.py --preset small   # Fashion-MNIST at 14x14: 20 minutes
python experiments/normalizer_free.py --preset small --pilots    # select rates first
"""

from functools import partial

from deepjax.command_line import parse, run_command
from deepjax.html_page import Table
from deepjax.models import create_model
from deepjax.study.arms.arm import Arm
from deepjax.study.claim import BOTH, SAME_LEVEL, TEST, UNDERPOWERED, Claim, Control
from deepjax.study.ladder import LADDER, LADDER_GPU, ladder_arm
from deepjax.study.preset import Preset
from deepjax.study.quantity import error
from deepjax.study.report.study_figures import error_by_epoch, error_rows
from deepjax.study.results import StudyResults
from deepjax.study.runner import run_study
from deepjax.study.stats.rules import above, below
from deepjax.study.study import Options, Study

# Networks: residual ones of 20 layers and equal shapes, and two of 8 layers that controls need.
# ReZero is used without the batch norm that its authors keep: can it replace batch norm?

ARMS = {
    "batch": ladder_arm("resnet", 20),
    "none": Arm("own/cifar_resnet20_no_norm", partial(create_model, "cifar_resnet20", norm="none")),
    "fixup": Arm("cifar_fixup20"),
    "skipinit": Arm("cifar_skipinit20"),
    "rezero": Arm(
        "own/cifar_rezero20_no_norm", partial(create_model, "cifar_rezero20", norm="none")
    ),
    "nf": Arm("cifar_nf20"),
    "batch8": ladder_arm("resnet", 8),
    "batch8_again": ladder_arm("resnet", 8, rate_of="batch8", other_seeds=True),
    "batch8_few_images": ladder_arm("resnet", 8, rate_of="batch8", part="[:2000]"),
}
SCHEMES = {"fixup": "Fixup", "skipinit": "SkipInit", "rezero": "ReZero", "nf": "NF-ResNet"}
LABELS = {"batch": "batch norm", **SCHEMES, "none": "no normalisation, no scheme"}


def rates(results: StudyResults) -> Table:
    """The learning rate of each network."""
    there = {label: results.arms[arm].rate for arm, label in LABELS.items() if arm in results.arms}
    rows = [[label, f"{rate:g}"] for label, rate in there.items()]
    return Table("Learning rate of each network", ("network", "rate"), rows)


# Rules, fixed before the runs. MARGIN is a quarter of the four points by which Fixup alone is worse
# than batch norm on ImageNet (27.6 and 23.6 %, Zhang et al. 2019): less is as good.
MARGIN = 1.0

CLAIMS = (
    *(
        Claim(
            f"With {label} in place of batch norm, a residual network of 20 layers has at most one "
            "point more error on training and on test images.",
            error(arm) - error("batch"), below(MARGIN), BOTH, interest=MARGIN,
            exploratory=UNDERPOWERED if arm == "fixup" else "",
        )
        for arm, label in SCHEMES.items()
    ),
    Claim(
        "Without batch norm, and with nothing in its place, a residual network of 20 layers is "
        "worse on training and on test images.",
        error("none") - error("batch"), above(0), BOTH, interest=MARGIN, exploratory=UNDERPOWERED,
    ),
    Claim(
        "Without batch norm, each of the four schemes is better than none, on training and on test "
        "images.",
        [error("none") - error(arm) for arm in SCHEMES], above(0), BOTH, interest=MARGIN,
        exploratory=UNDERPOWERED,
    ),
    Control(
        "A/A: the residual network of 8 layers is worse than itself under other seeds.",
        error("batch8") - error("batch8_again"), above(0), TEST, expected=("inconclusive",),
        level=SAME_LEVEL,
    ),
    Control(
        "Planted defect: an eighth of the training images, for as many steps, makes the residual "
        "network of 8 layers worse.",
        error("batch8_few_images") - error("batch8"), above(0), TEST, expected=("supported",),
        defect=True, gate=False,
    ),
)  # fmt: skip
FIGURES = (
    error_rows(
        "errors",
        "Final error of residual networks of 20 layers, each at its own learning rate. Small dots: "
        "seeds; large dot: their mean; bar: its 95 % interval over seeds.",
        LABELS, claim="Without batch norm, each of the four schemes",
    ),
    error_by_epoch(
        "epochs",
        "Error by epoch: test solid, training dashed (a mean over the epoch).",
        {
            "Schemes": {label: arm for arm, label in SCHEMES.items()},
            "With and without batch norm": {
                label: arm for arm, label in LABELS.items() if arm not in SCHEMES
            },
        },
        claim="Without batch norm, and with nothing",
    ),
)  # fmt: skip
STUDY = Study(
    name="normalizer_free",
    title="Does a residual network need batch norm?",
    lecture=(
        "Shortcuts alone do not keep a deep network's signal: each block adds its branch, and the "
        "variance doubles. Batch norm keeps branches small relative to the shortcut (De and Smith "
        "2020)"
    ),
    arms=ARMS,
    presets={
        "quick": Preset(
            "digits", 2, judged=False, rate=0.05,
            training={"epochs": 6, "batch_size": 64, "width": 8, "warmup_epochs": 2.0},
            arms=("batch", "none", "nf", "rezero"),
        ),
        "small": Preset(
            "fashion_mnist_small", 6, training=LADDER,
            grid=(0.05, 0.1, 0.2),
            grids={
                "none": (0.01, 0.02, 0.04), "fixup": (0.0125, 0.025, 0.05),
                "skipinit": (0.025, 0.05, 0.1), "nf": (0.2, 0.4, 0.8),
            },
        ),
        "gpu": Preset(
            "fashion_mnist", 6,
            training=LADDER_GPU,
            grid=(0.05, 0.1, 0.2), grids={"none": (0.01, 0.02, 0.04)},
            arms=tuple(LABELS),
        ),
    },
    claims=CLAIMS,
    figures=FIGURES,
    tables=(rates,),
    method=(
        "Residual networks of 20 layers and equal shapes, trained alike, each at its own learning "
        "rate. Every scheme is as in its authors' code, with two exceptions: ReZero's authors keep "
        "batch norm next to their scalar, which is alone here, and Fixup's authors train scalars "
        "at a tenth of the rate, which is one for all here."
    ),
    limits=(
        "Twenty layers and twelve epochs: not that the schemes are as good at a hundred layers, "
        "nor how batch norm regularises in a long training."
    ),
    beyond=True,
)  # fmt: skip

if __name__ == "__main__":
    run_command(lambda: run_study(STUDY, parse(Options)))
