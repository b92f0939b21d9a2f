"""Is a deep plain network less able, or only harder to optimise?

He et al. 2015 (arXiv:1512.03385), section 1: a shallower network with identity layers inserted is a
deeper one of equal outputs. Li et al. 2018 (arXiv:1712.09913): the surface of the loss.

python experiments/optimization.py                  # digits, two minutes on two cores, no verdicts
python experiments/optimization.py --preset small --reuse-runs-from runs  # those of degradation
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax import linen as nn
from matplotlib.figure import Figure

from deepjax.analysis import TRAIN, init_variables, loss_plane, random_direction, spectral_density
from deepjax.analysis.landscape.plane import LossPlane
from deepjax.analysis.network.module import Batch
from deepjax.analysis.plots import STYLE
from deepjax.command_line import parse, run_command
from deepjax.models.layers.scanned_blocks import stack_blocks
from deepjax.study.arms.arm import Arm
from deepjax.study.claim import CHANGED, SAME_LEVEL, Claim, Control
from deepjax.study.finetune import finetune, initial_variables, train_error
from deepjax.study.identity_layers import stage_moments, with_identities, with_random_layers
from deepjax.study.ladder import LADDER, LADDER_GPU
from deepjax.study.networks import Stack
from deepjax.study.preset import Preset
from deepjax.study.quantity import Quantity, measured
from deepjax.study.report.plots import set_title
from deepjax.study.report.study_figures import StudyFigure, value_rows
from deepjax.study.results import StudyResults
from deepjax.study.runner import run_study
from deepjax.study.stats.rules import above, below, within
from deepjax.study.study import Options, SeedContext, Study
from deepjax.training import open_run
from deepjax.training.config import replace_options
from deepjax.training.run_directory.run_dir import OpenRun

# Networks: arms of the degradation study, whose runs are reused.
ARMS = {name: Arm(f"cifar_{name}") for name in ("resnet44", "plain44", "plain20")}
TUNED = {"learning_rate": 0.01, "warmup_epochs": 0.0}  # the rate was chosen after a look
BATCHES = 2  # of training images, on each of which the Hessian is measured


# Measurements.


def constructed_errors(
    shallow: OpenRun, deep: OpenRun, tuning: Mapping[str, Any], data_dir: str | None
) -> dict[str, float]:
    """Training errors in per cent of deep plain networks that contain the shallow one.

    "identities": with identity layers; "tuned": these after more training; "random layers": with
    untrained layers in place of the identities.
    """
    config = replace_options(deep.config, **tuning)
    moments = stage_moments(shallow.model, shallow.variables, shallow.batch(1024)["image"])
    built = with_identities(shallow.variables, moments, deep.model.stages[0])  # pyright: ignore[reportAttributeAccessIssue]
    networks = {
        "identities": built,
        "tuned": finetune(config, built, data_dir),
        "random layers": with_random_layers(shallow.variables, initial_variables(config, data_dir)),
    }
    return {
        name: 100 * train_error(config, variables, data_dir) for name, variables in networks.items()
    }


def scanned(model: nn.Module, variables: Any) -> tuple[nn.Module, Any]:
    """The same network in float32 with equal blocks in a scan, which compiles faster."""
    return model.clone(scan=True, dtype=jnp.float32), stack_blocks(variables)


def negative_curvature(
    model: nn.Module, variables: Any, batch: Batch, seed: int, steps: int
) -> float:
    """|smallest / largest| eigenvalue of the Hessian, 0 if none is negative (Li et al. 2018, 6).

    By Lanczos' method. Of the training loss, with the statistics of the batch.
    """
    density = spectral_density(
        model, variables, batch, steps=steps, probes=1, mode=TRAIN, key=jax.random.key(seed)
    )
    return abs(min(density.lambda_min, 0.0) / density.lambda_max)


def random_plane(
    model: nn.Module, variables: Any, batch: Batch, seed: int, points: int
) -> LossPlane:
    """The training loss on a plane of two filter-normalised directions (Li et al. 2018, 4)."""
    stacked = {name: (0, -1) for name in variables["params"] if name.endswith("_blocks")}
    keys = jax.random.split(jax.random.key(seed))
    x, y = (random_direction(variables, key, axes=stacked) for key in keys)
    grid = np.linspace(-1, 1, points)
    return loss_plane(model, variables, batch, x, y, grid=(grid, grid), mode=TRAIN)


def measure(context: SeedContext) -> dict[str, Any]:
    """Training errors of constructed networks; the loss around networks trained from scratch."""
    seed, sizes = context.seed, context.preset.sizes
    runs = {name: open_run(path, data_dir=context.data_dir) for name, path in context.runs.items()}
    shallow, deep = runs["plain20"], runs["plain44"]
    errors = {name: 100 * run.metrics()[-1]["train_error"] for name, run in runs.items()}
    errors |= constructed_errors(shallow, deep, sizes["tuning"], context.data_dir)
    batches = [deep.batch(sizes["images"], seed=BATCHES * seed + i) for i in range(BATCHES)]
    few = deep.batch(sizes["plane_images"], seed=seed)
    linear = Stack(())
    networks = {
        name: scanned(runs[name].model, runs[name].variables) for name in ("plain44", "resnet44")
    } | {"linear": (linear, init_variables(linear, jax.random.key(seed), few["image"].shape))}
    ratios, planes = {}, {}
    for i, (name, (model, variables)) in enumerate(networks.items(), 1):
        ratios[name] = [
            negative_curvature(model, variables, batch, seed, sizes["steps"]) for batch in batches
        ]
        planes[name] = random_plane(model, variables, few, seed, sizes["points"])
        context.progress(i, len(networks))
    return {
        "error": errors,
        "ratio": ratios,
        "concave": {name: plane.concave_fraction for name, plane in planes.items()},
        "planes": {name: planes[name].loss.tolist() for name in ARMS if name in planes},
    }


# Rules, fixed before the runs. SAME: 4 of 4,000 images; equal up to rounding, the networks may
# differ in few. KEPT: the margin of the degradation study. A difference of 0.1 in a ratio that is
# between 0 and 1, or in a fraction, is the smallest of interest.
SAME, KEPT, DIFFERENCE = 0.1, 2.0, 0.1


def training_error(name: str) -> Quantity:
    """The training error in per cent, on the first 4,000 images, less that of plain-20."""
    difference = measured("error", name) - measured("error", "plain20")
    return difference.named(f"training error, {name} less plain20", " points")


def more(kind: str) -> Quantity:
    """A measure of concavity at plain-44 less that at residual-44."""
    return measured(kind, "plain44") - measured(kind, "resnet44")


CLAIMS = (
    Claim(
        "By construction plain-20 with identity layers is a plain-44 of the same training error.",
        training_error("identities"), within(-SAME, SAME), interest=SAME, measures=("plain20",),
    ),
    Claim(
        "At the end of training the loss has more negative curvature, relative to its largest, at "
        "plain-44 than at residual-44.",
        more("ratio").named("|smallest / largest| eigenvalue, plain-44 less residual-44"),
        above(0), interest=DIFFERENCE, headline=True, measures=("plain44", "resnet44"),
    ),
    Claim(
        "Fine-tuned from the identities, plain-44 has at most two points more training error than "
        "plain-20.",
        training_error("tuned"), below(KEPT), interest=KEPT, exploratory=CHANGED,
        measures=("plain20",),
    ),
    Claim(
        "On a random plane the loss is less convex around plain-44 than around residual-44.",
        more("concave").named("concave fraction of the plane, plain-44 less residual-44"),
        above(0), interest=DIFFERENCE, measures=("plain44", "resnet44"),
    ),
    Control(
        "Planted defect: plain-20 with random layers in place of identities is a plain-44 of the "
        "same training error.",
        training_error("random layers"), within(-SAME, SAME), expected=("refuted",), defect=True,
        gate=False,
    ),
    Control(
        "A/A: at residual-44 the loss has more negative curvature on some images than on others.",
        (measured("ratio", "resnet44", 0) - measured("ratio", "resnet44", 1)).named(
            "|smallest / largest| eigenvalue, less that on other images"
        ),
        above(0), expected=("inconclusive",), level=SAME_LEVEL,
    ),
    Control(
        "The Hessian of a linear classifier, whose loss is convex, has negative eigenvalues.",
        measured("ratio", "linear", name="|smallest / largest| eigenvalue"), above(0.001),
        expected=("refuted",),
    ),
)  # fmt: skip


def draw_planes(results: StudyResults, title: str) -> Figure:
    """Contours of the loss around both networks of the first seed."""
    planes = results.values("planes")[0]
    names = {"plain44": "Plain-44", "resnet44": "Residual-44"}
    every = np.array([planes[name] for name in names])
    bounds = float(np.nanmin(every)), float(np.nanmax(every))
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(1, len(names), figsize=(5.4 * len(names), 4.9))
        for ax, (name, label) in zip(axes, names.items(), strict=True):
            x, loss = np.linspace(-1, 1, len(planes[name])), np.array(planes[name])
            plane = LossPlane(TRAIN, True, None, x, x, loss, None, None)
            found = f"{label}: {100 * plane.concave_fraction:.0f} % concave"
            plane.plot(ax, title=found, bounds=bounds)
        set_title(figure, title)
    return figure


FIGURES = (
    value_rows(
        "errors",
        "Training error by construction and from scratch, on the first 4,000 training images. "
        "Identities: plain-20 with identity layers; fine-tuned: these after more training.",
        {
            "plain-20": ("error", "plain20"),
            "plain-44, identities": ("error", "identities"),
            "plain-44, fine-tuned": ("error", "tuned"),
            "plain-44 from scratch": ("error", "plain44"),
            "residual-44 from scratch": ("error", "resnet44"),
        },
        "training error (%)", claim="By construction plain-20", split="train",
    ),
    value_rows(
        "hessian",
        "Negative curvature at the end of training. |Smallest / largest| eigenvalue of the Hessian "
        "of the training loss; mean over two batches for each seed.",
        {"plain-44": ("ratio", "plain44"), "residual-44": ("ratio", "resnet44"),
         "untrained linear classifier": ("ratio", "linear")},
        "|smallest / largest| eigenvalue", claim="At the end of training the loss",
    ),
    StudyFigure(
        "planes", draw_planes,
        "The training loss on a random plane around networks of the first seed. The cross is the "
        "network; directions are filter-normalised. After Li et al. 2018, Figure 5.",
    ),
    value_rows(
        "concave",
        "Concave fraction of a random plane around the network. Points at which the training loss "
        "curves down in some direction of the plane.",
        {"plain-44": ("concave", "plain44"), "residual-44": ("concave", "resnet44"),
         "untrained linear classifier": ("concave", "linear")},
        "concave fraction", claim="On a random plane",
    ),
)  # fmt: skip
STUDY = Study(
    name="optimization",
    title="Is a deep plain network less able, or only harder to optimise?",
    lecture=(
        "ResNet: deeper models are harder to optimise; the solution by construction is the "
        "shallower one with identities"
    ),
    arms=ARMS,
    presets={
        "quick": Preset(
            "digits", 2, judged=False, rate=0.1,
            training={"epochs": 12, "batch_size": 64, "width": 8, "warmup_epochs": 4.0},
            sizes={
                "tuning": {"steps": 10, **TUNED}, "images": 32, "steps": 10, "plane_images": 32,
                "points": 11,
            },
        ),
        "small": Preset(
            "fashion_mnist_small", 8, pilots="degradation", training=LADDER,
            sizes={
                "tuning": {"steps": 100, **TUNED}, "images": 128, "steps": 30, "plane_images": 64,
                "points": 25,
            },
        ),
        "gpu": Preset(
            "fashion_mnist", 6, pilots="degradation", training=LADDER_GPU,
            sizes={
                "tuning": {"steps": 400, **TUNED}, "images": 512, "steps": 40, "plane_images": 256,
                "points": 51,
            },
        ),
    },
    measure=measure,
    claims=CLAIMS,
    figures=FIGURES,
    method=(
        "An identity layer has kernels that copy the centre pixel, and a batch norm whose scale "
        "and shift undo the normalisation. In evaluation mode plain-20 with identity layers "
        "computes the outputs of plain-20 up to rounding; in training mode, in which it is "
        "fine-tuned, only approximately, since the statistics of a batch differ from the stored "
        "ones. That plain-44 from scratch has a higher error is tested in the degradation study."
    ),
    limits=(
        "Curvature is measured where each training ended, which is not at equal losses, and on a "
        "few images; each network has its own learning rate. That curvature is why the plain "
        "network trains worse is not shown."
    ),
)  # fmt: skip

if __name__ == "__main__":
    run_command(lambda: run_study(STUDY, parse(Options)))
