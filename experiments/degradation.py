"""Does depth hurt a plain network, and does the residual one repair it?

He et al. 2015 (arXiv:1512.03385), Figures 1 and 6, section 4.2.

python experiments/degradation.py                  # digits, two minutes on two cores, no verdicts
python experiments/degradation.py --preset small   # Fashion-MNIST at 14x14: 40 minutes
python experiments/degradation.py --preset gpu --pilots    # select rates first, on a GPU

Other depths, any 6 n + 2: DEPTHS in deepjax/study/ladder.py, and another --output-dir.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from deepjax.analysis import cross_entropy, init_variables, kernel_norms
from deepjax.command_line import parse, run_command
from deepjax.data import dataset_info, sample
from deepjax.study.claim import BOTH, CHANGED, SAME_LEVEL, Claim, Control
from deepjax.study.ladder import DEPTHS, LADDER, LADDER_GPU, ladder_arm
from deepjax.study.networks import Stack
from deepjax.study.preset import Preset
from deepjax.study.quantity import error, measured, slope
from deepjax.study.report.study_figures import error_by_epoch, error_lines, gradient_profile
from deepjax.study.runner import run_study
from deepjax.study.stats.rules import above, below, within
from deepjax.study.study import Options, SeedContext, Study
from deepjax.training.metrics.metrics_log import METRICS, read_rows

SHALLOW, MIDDLE, DEEP = DEPTHS
RESNET = f"resnet{SHALLOW}"
AGAIN, FEW_IMAGES = f"{RESNET}_again", f"{RESNET}_few_images"

# Networks: those of He et al. 2015, section 4.2, and two that controls need.
ARMS = {
    f"{kind}{depth}": ladder_arm(kind, depth)
    for depth in DEPTHS[::-1]
    for kind in ("resnet", "plain")
} | {
    AGAIN: ladder_arm("resnet", SHALLOW, rate_of=RESNET, other_seeds=True),
    FEW_IMAGES: ladder_arm("resnet", SHALLOW, rate_of=RESNET, part="[:2000]"),
}


# Measurements.


def log_ratio(norms: Mapping[str, float]) -> float:
    """log10 of the gradient norm near the input over that near the output.

    Medians over the third of the convolutions nearest to each; norms: by layer, in the order of the
    forward pass. The last layer, the classifier, does not count.
    """
    convolutions = list(norms.values())[:-1]
    third = len(convolutions) // 3
    return float(np.log10(np.median(convolutions[:third]) / np.median(convolutions[-third:])))


def sigmoid_norms(batch: Mapping[str, Any], seed: int, layers: int = 20) -> dict[str, float]:
    """Gradient norm by layer of an untrained network of sigmoids, in which gradients vanish.

    Glorot and Bengio 2010.
    """
    model = Stack((3,) * layers, width=8, activation="sigmoid", norm=False)
    params = init_variables(model, jax.random.key(seed), batch["image"].shape)["params"]

    def loss(params: Any) -> jax.Array:
        logits: Any = model.apply({"params": params}, batch["image"])
        return cross_entropy(logits, batch)

    norms = {
        layer: float(norm) for layer, norm in kernel_norms(jax.jit(jax.grad(loss))(params)).items()
    }
    return {layer: norms[layer] for layer in [*(f"conv{i}" for i in range(1, layers + 1)), "head"]}


def measure(context: SeedContext) -> dict[str, Any]:
    """Gradients near the input over those near the output, at the first step and at the end."""
    rows = read_rows(context.runs[f"plain{DEEP}"] / METRICS)
    epochs = [row for row in rows if row["kind"] == "epoch"]
    batch = sample(dataset_info(context.dataset), 64, context.seed, data_dir=context.data_dir)
    return {
        "first step": log_ratio(rows[0]["gradient_norms"]),
        "last epoch": log_ratio(epochs[-1]["gradient_norms"]),
        "sigmoids": log_ratio(sigmoid_norms(batch, context.seed)),
    }


# Rules, fixed before the runs. MARGIN is under half of the 5.1 points that 20 -> 56 layers without
# shortcuts cost on CIFAR-10 (Li et al. 2018: 8.18 -> 13.31 %), REPAIR under half of the 7.4 points
# that shortcuts save at 56 layers there (13.31 -> 5.89 %). A doubling of depth, of which 20 -> 56
# layers are one and a half, is of interest from 1 point on. A factor of ten either way is far from
# vanishing or exploding: a factor of 0.9 per layer gives 0.05 over the 28 layers between the
# thirds.
MARGIN, REPAIR, TENFOLD = 2.0, 3.0, 1.0


def trend(kind: str) -> Any:
    """Points of error for each doubling of the depth, by least squares over three depths."""
    points = {float(np.log2(depth)): error(f"{kind}{depth}") for depth in DEPTHS}
    return slope(points, f"{kind}, for each doubling of depth")


def over(moment: str) -> Any:
    """The logarithm of the gradient near the input over that near the output."""
    return measured(moment, name=f"log10 of near the input over near the output, {moment}")


CLAIMS = (
    Claim(
        f"Plain networks get worse with depth, from {SHALLOW} to {DEEP} layers, on training and "
        "on test images.",
        trend("plain"), above(0), BOTH, interest=1.0, headline=True,
    ),
    Claim(
        f"The plain network of {DEEP} layers is worse than that of {MIDDLE} on training and on "
        "test images.",
        error(f"plain{DEEP}") - error(f"plain{MIDDLE}"), above(0), BOTH, interest=MARGIN,
        headline=True,
    ),
    Claim(
        f"The residual network of {DEEP} layers has at most {MARGIN:g} points more error than that "
        f"of {MIDDLE}, on training and on test images.",
        error(f"resnet{DEEP}") - error(f"resnet{MIDDLE}"), below(MARGIN), BOTH, interest=MARGIN,
        headline=True,
    ),
    Claim(
        f"The residual network of {DEEP} layers is better than the plain one on training and on "
        "test images.",
        error(f"plain{DEEP}") - error(f"resnet{DEEP}"), above(0), BOTH, interest=REPAIR,
        headline=True,
    ),
    Claim(
        "Depth harms plain networks more than residual ones.",
        trend("plain") - trend("resnet"), above(0), BOTH, interest=1.0,
    ),
    Claim(
        f"In the last epoch the gradients of the plain network of {DEEP} layers neither vanish nor "
        "explode from its output to its input.",
        over("last epoch"), within(-TENFOLD, TENFOLD), interest=TENFOLD, headline=True,
        measures=(f"plain{DEEP}",),
    ),
    Claim(
        f"At the first step the gradients of the plain network of {DEEP} layers neither vanish nor "
        "explode from its output to its input.",
        over("first step"), within(-TENFOLD, TENFOLD), interest=TENFOLD, exploratory=CHANGED,
    ),
    Control(
        "The gradients of twenty layers of sigmoids neither vanish nor explode.",
        over("sigmoids"), within(-TENFOLD, TENFOLD), expected=("refuted",),
    ),
    Control(
        f"A/A: the residual network of {SHALLOW} layers is worse than itself under other seeds.",
        error(RESNET) - error(AGAIN), above(0), BOTH, expected=("inconclusive",),
        level=SAME_LEVEL,
    ),
    Control(
        "Planted defect: an eighth of the training images, for as many steps, makes the residual "
        f"network of {SHALLOW} layers worse.",
        error(FEW_IMAGES) - error(RESNET), above(0), expected=("supported",),
        defect=True, gate=False,
    ),
)  # fmt: skip
KINDS = {
    label: {depth: f"{kind}{depth}" for depth in DEPTHS}
    for label, kind in (("plain", "plain"), ("residual", "resnet"))
}
FIGURES = (
    error_lines(
        "depth",
        "Final error by depth. On at most 4,000 training images and on all test images; mean over "
        "seeds, band from the best to the worst. After He et al. 2015, Figure 1.",
        KINDS, "layers", claim="Plain networks get worse",
    ),
    error_by_epoch(
        "epochs",
        "Error by epoch: test solid, training dashed (a mean over the epoch). After He et "
        "al. 2015, Figure 6.",
        {
            label.capitalize(): {f"{depth} layers": arm for depth, arm in arms.items()}
            for label, arms in KINDS.items()
        },
        claim=f"The residual network of {DEEP} layers is better",
    ),
    gradient_profile(
        "gradients",
        "Norm of the loss's gradient by layer; geometric mean over seeds, band from least to "
        "greatest.",
        {f"plain{DEEP}": f"plain, {DEEP}", f"resnet{DEEP}": f"residual, {DEEP}",
         f"plain{MIDDLE}": f"plain, {MIDDLE}"},
        claim="In the last epoch the gradients",
    ),
)  # fmt: skip
STUDY = Study(
    name="degradation",
    title="Does depth hurt a plain network, and does the residual one repair it?",
    lecture=(
        "ResNet: the deeper plain model performs worse on both training and test error, so it is "
        "not overfitting"
    ),
    arms=ARMS,
    presets={
        # Twelve epochs with a warm-up of four: with less the residual networks do not train.
        "quick": Preset(
            "digits", 2, judged=False, rate=0.1,
            training={"epochs": 12, "batch_size": 64, "width": 8, "warmup_epochs": 4.0},
            arms=(f"resnet{DEEP}", f"plain{DEEP}", RESNET, f"plain{SHALLOW}"),
        ),
        "small": Preset(
            "fashion_mnist_small", 8, training=LADDER, grid=(0.05, 0.1, 0.2),
            grids={f"plain{depth}": (0.0125, 0.025, 0.05) for depth in (DEEP, MIDDLE)},
        ),
        "gpu": Preset(
            "fashion_mnist", 6, training=LADDER_GPU, grid=(0.025, 0.05, 0.1),
        ),
    },
    measure=measure,
    claims=CLAIMS,
    figures=FIGURES,
    method=(
        "If a deeper network overfitted, it would be better on the training images and worse on "
        "the test images; if it is worse on both, optimisation is the problem. A residual network "
        "adds to the output of every two layers their input, the plain one does not; both have "
        "equal parameters (He et al. 2015, section 4.2)."
    ),
    limits=(
        "Networks of width 8 on small grey images for twelve epochs: not that the effect has this "
        "size at ImageNet's scale, nor at a training of hundreds of epochs."
    ),
)  # fmt: skip

if __name__ == "__main__":
    run_command(lambda: run_study(STUDY, parse(Options)))
