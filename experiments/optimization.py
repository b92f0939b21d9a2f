"""Is a deeper plain network less able, or only harder to optimise?

He et al. 2015 (arXiv:1512.03385), section 1: a shallower network with identity layers inserted is a
deeper one of equal outputs. Li et al. 2018 (arXiv:1712.09913): the surface of the loss.

python experiments/optimization.py              # digits: three to four minutes on two CPU cores
python experiments/optimization.py --dataset fashion_mnist
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from flax import linen as nn

from deepjax.analysis import TRAIN, loss_plane, random_direction, spectral_density
from deepjax.analysis.landscape.plane import LossPlane
from deepjax.analysis.network.module import Batch
from deepjax.analysis.plots import STYLE, save
from deepjax.command_line import parse, run_command
from deepjax.models.layers.scanned_blocks import stack_blocks
from deepjax.study.arms import Arm
from deepjax.study.finetune import finetune, initial_variables, train_error
from deepjax.study.identity_layers import stage_moments, with_identities, with_random_layers
from deepjax.study.networks import Stack
from deepjax.study.report.html import Figure
from deepjax.study.report.plots import rows_figure
from deepjax.study.runner import run_study
from deepjax.study.stats.claims import Claim, judge_claims
from deepjax.study.stats.rules import all_above, all_below, all_within, interval_rule
from deepjax.study.stats.verdict import NOT_SUPPORTED, Verdict
from deepjax.study.study import (
    HE_2015_CIFAR,
    Options,
    Preset,
    SeedContext,
    Study,
    StudyResults,
    make_arm,
)
from deepjax.training import open_run
from deepjax.training.config import replace_options
from deepjax.training.metrics.metrics_log import read_rows


def surface(
    model: nn.Module,
    variables: Mapping[str, Any],
    batch: Batch,
    seed: int,
    points: int = 11,
    steps: int = 30,
) -> dict[str, Any]:
    """Extreme Hessian eigenvalues, |smallest / largest|, and a random plane with its concave part.

    Li et al. 2018, sections 4 and 6. The loss has batch statistics, as in training. The plane's
    directions are filter-normalised, from -1 to 1. Blocks are scanned, to compile fast.
    """
    if hasattr(model, "scan"):
        model, variables = model.clone(scan=True), stack_blocks(variables)
    stacked = {name: (0, -1) for name in variables["params"] if name.endswith("_blocks")}
    across, up = (
        random_direction(variables, key, axes=stacked)
        for key in jax.random.split(jax.random.key(seed))
    )
    grid = np.linspace(-1, 1, points)
    plane = loss_plane(model, variables, batch, across, up, grid=(grid, grid), mode=TRAIN)
    density = spectral_density(
        model, variables, batch, steps=steps, probes=1, mode=TRAIN, key=jax.random.key(seed)
    )
    largest, smallest = density.lambda_max, density.lambda_min
    return {
        "largest": largest,
        "smallest": smallest,
        "ratio": abs(min(smallest, 0.0) / largest),
        "concave": plane.concave_fraction,
        "examples": plane.examples,
        "grid": grid.tolist(),
        "loss": plane.loss.tolist(),
    }


def planes_figure(panels: Sequence[tuple[str, Mapping[str, Any]]], path: Path) -> Path:
    """Contours of the loss on each plane: (title, result of `surface`). Written to `path`."""
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(1, len(panels), figsize=(5.4 * len(panels), 4.6), squeeze=False)
        for ax, (title, found) in zip(axes[0], panels, strict=True):
            x, loss = np.array(found["grid"]), np.array(found["loss"])
            LossPlane(TRAIN, True, found["examples"], x, x, loss, None, None).plot(ax)
            ax.set(title=title, xticks=(-1, -0.5, 0, 0.5, 1), yticks=(-1, -0.5, 0, 0.5, 1))
    return save(figure, path)


# Rules, fixed before the runs; errors in per cent, differences paired by seed. 0.1 points are under
# two of 1,437 digits; 2 points are the margin of the degradation study, from which "worse from
# scratch" was known. Controls: random layers in place of identities must destroy the error; the
# residual network must not be judged worse, nor a linear classifier, whose loss is convex, less
# convex.
RULES = {
    "equal": interval_rule("within 0.1 points of 0", partial(all_within, low=-0.1, high=0.1)),
    "kept": interval_rule("below 2 points", partial(all_below, bound=2.0)),
    "more": interval_rule("above 0", partial(all_above, bound=0.0)),
}
# fmt: off
CLAIMS = (
    Claim("Plain-20 with identity layers is a plain-56 of the same error.",
          "error", ("identities", "plain20"), "equal"),
    Claim("From scratch, plain-56 ends with a higher training error than plain-20.",
          "error", ("plain56", "plain20"), "more"),
    Claim("Fine-tuned from there, plain-56 stays as good as plain-20.",
          "error", ("identities, tuned", "plain20"), "kept"),
    Claim("The Hessian at plain-56 is less convex than at residual-56.",
          "ratio", ("plain56", "resnet56"), "more"),
    Claim("The loss around plain-56 is less convex than around residual-56.",
          "concave", ("plain56", "resnet56"), "more"),
    Claim("Plain-20 with layers as drawn is a plain-56 of the same error.",
          "error", ("drawn", "plain20"), "equal", ("refuted",)),
    Claim("Fine-tuned from there, it is as good as plain-20.",
          "error", ("drawn, tuned", "plain20"), "kept", NOT_SUPPORTED),
    Claim("Residual-56 ends with a higher error than plain-20.",
          "error", ("resnet56", "plain20"), "more", NOT_SUPPORTED),
    Claim("The Hessian of a linear classifier is less convex.",
          "ratio", ("linear", "resnet56"), "more", NOT_SUPPORTED),
    Claim("The loss around a linear classifier is less convex.",
          "concave", ("linear", "resnet56"), "more", NOT_SUPPORTED),
)
# fmt: on
MEASURES = {
    "error": (
        "Error on all training images, in evaluation mode, where batch norm has its stored "
        "statistics.",
        " %",
    ),
    "ratio": (
        "|least / greatest| eigenvalue of the Hessian of the training loss (batch statistics), "
        "by Lanczos' method.",
        "",
    ),
    "concave": (
        "Share of a random plane, filter-normalised (Li et al. 2018), where the training loss "
        "curves down in a direction.",
        "",
    ),
}
SHORT = {"epochs": 1, "batch_size": 128, "width": 8, "warmup_epochs": 0.3, "image_size": 16}
TUNE = {"learning_rate": 0.01, "warmup_epochs": 0.0}
PRESETS = {
    # One rate: in the degradation study 0.1 was the best of every network.
    "digits": Preset(
        "plain-20 near 2 %, plain-56 near 65 % training error (degradation study); the "
        "constructed one as plain-20, by algebra",
        seeds=4,
        rates=(0.1,),
        training={"epochs": 12, "batch_size": 64, "width": 8, "warmup_epochs": 4.0},
        sizes={"finetune": {"epochs": 3, **TUNE}, "examples": 64, "points": 9, "steps": 15},
    ),
    "fashion_mnist": Preset(
        "nothing: no source is known for so short a training",
        rates=(0.1,),
        training=SHORT,
        sizes={"finetune": {"steps": 100, **TUNE}, "examples": 256, "points": 15, "steps": 40},
    ),
    "cifar10": Preset(
        "test error of plain 20 / 56: 8.18 / 13.31 % (Li et al. 2018, whose plain-56 has a "
        "chaotic surface); not measured here",
        training={"epochs": 164, **HE_2015_CIFAR},
        sizes={
            "finetune": {"steps": 4000, "learning_rate": 0.01},
            "examples": 1024,
            "points": 51,
            "steps": 90,
        },
    ),
}


def make_arms(options: Options, preset: Preset) -> dict[str, Arm]:
    """Plain and residual networks from scratch."""
    return {
        name: make_arm(name, f"cifar_{name}", options, preset)
        for name in ("plain56", "resnet56", "plain20")
    }


def measure(context: SeedContext) -> dict[str, Any]:
    """Training errors in per cent: from scratch, constructed and fine-tuned; and surfaces."""
    runs = {name: open_run(path, data_dir=context.data_dir) for name, path in context.runs.items()}
    shallow, deep, sizes = runs["plain20"], runs["plain56"], context.preset.sizes
    config = replace_options(deep.config, steps=0, **sizes["finetune"])
    moments = stage_moments(shallow.model, shallow.variables, shallow.batch(1024)["image"])
    built = with_identities(shallow.variables, moments, deep.model.stages[0])  # pyright: ignore[reportAttributeAccessIssue]
    drawn = with_random_layers(shallow.variables, initial_variables(config, context.data_dir))
    errors = {
        name: 100 * read_rows(path / "metrics.jsonl")[-1]["train_error"]
        for name, path in context.runs.items()
    }
    for name, variables in {"identities": built, "drawn": drawn}.items():
        tuned = finetune(config, variables, context.data_dir)
        errors[name], errors[f"{name}, tuned"] = (
            100 * train_error(config, each, context.data_dir) for each in (variables, tuned)
        )
    batch = shallow.batch(sizes["examples"], seed=context.seed)
    networks: dict[str, Any] = {
        name: (runs[name].model, runs[name].variables) for name in ("plain56", "resnet56")
    }
    networks["identities"] = deep.model, built
    networks["linear"] = Stack(()), Stack(()).init(jax.random.key(0), batch["image"])
    around = partial(
        surface, batch=batch, seed=context.seed, points=sizes["points"], steps=sizes["steps"]
    )
    surfaces = {name: around(*network) for name, network in networks.items()}
    shapes = {
        kind: {name: found[kind] for name, found in surfaces.items()}
        for kind in ("ratio", "concave")
    }
    return {"error": errors, **shapes, "surfaces": surfaces}


def judge(results: StudyResults) -> list[Verdict]:
    """Capacity, training from scratch and from the solution, the surface; then their controls."""
    return judge_claims(CLAIMS, RULES, MEASURES, results.measured)


def draw(results: StudyResults, out: Path) -> list[Figure]:
    """Errors, planes of the first seed, and the numbers of the surfaces."""
    rows = {
        kind: {name: results.values(kind, name) for name in sorted(results.measured[0][kind])}
        for kind in MEASURES
    }
    mean = {
        kind: {name: f"{np.mean(values):.2g}" for name, values in of.items()}
        for kind, of in rows.items()
    }
    title = (
        f"Plain-56: {mean['error']['identities']} % by construction,\n{mean['error']['plain56']} "
        "% from scratch"
    )
    label = {"ratio": "|least / greatest| eigenvalue", "concave": "concave share of the plane"}
    shapes = [
        (f"Plain-56 {mean[k]['plain56']},\nresidual-56 {mean[k]['resnet56']}", label[k], rows[k])
        for k in label
    ]
    surfaces = results.measured[0]["surfaces"]
    planes = [
        (f"{name}: {100 * found['concave']:.0f} % concave", found)
        for name, found in surfaces.items()
        if name != "linear"
    ]
    return [
        Figure(
            rows_figure([(title, "training error (%)", rows["error"])], out / "errors.png"), CAPTION
        ),
        Figure(
            planes_figure(planes, out / "planes.png"),
            "Training loss on a random plane around networks of the first seed.",
        ),
        Figure(rows_figure(shapes, out / "surfaces.png"), f"The surface in two numbers. {CAPTION}"),
    ]


CAPTION = (
    "Identities: plain-20 with identity layers; drawn: with layers as drawn; tuned: fine-tuned. "
    "Bars: 95 % intervals."
)
METHOD = [
    "Identity layers: kernels that pass on the middle pixel, and a batch norm whose scale and "
    "shift undo it. In evaluation mode it is plain-20 to rounding; in training mode, in which it "
    "is tuned, only nearly: the batch's statistics stray from the stored."
]
STUDY = Study(
    name="optimization",
    lecture=(
        "ResNet: deeper models are harder to optimise; the solution by construction is the "
        "shallower one with identities"
    ),
    title="Is a deep plain network less able, or only harder to optimise?",
    question=(
        "A plain network of 56 layers can do all that one of 20 can. Is the solution there, and "
        "is it only not found?"
    ),
    presets=PRESETS,
    arms=make_arms,
    measure=measure,
    judge=judge,
    draw=draw,
    method=lambda results: METHOD,
    limits=lambda results: [
        "Surfaces are looked at where trainings ended, which is not at equal losses."
    ],
)

if __name__ == "__main__":
    run_command(lambda: run_study(STUDY, parse(Options)))
