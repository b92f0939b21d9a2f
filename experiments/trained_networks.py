"""How do trained plain and residual networks differ: in curvature, gradients, layers and paths?

Cohen et al. 2021 (arXiv:2103.00065), Frankle et al. 2020 (arXiv:1912.05671), Sankararaman et al.
2020 (arXiv:1904.06963), Greff et al. 2017 (arXiv:1612.07771).

python experiments/trained_networks.py                 # a minute on two cores, no verdicts
python experiments/trained_networks.py --preset small --reuse-runs-from runs    # 45 minutes
"""

from dataclasses import replace
from typing import Any

import jax
import numpy as np

from deepjax.analysis import (
    TRAIN,
    cka,
    edge_of_stability,
    gradient_confusion,
    init_variables,
    linear_interpolation,
    top_eigenvalues,
)
from deepjax.command_line import parse, run_command
from deepjax.study.arms.arm import Arm
from deepjax.study.claim import UNDERPOWERED, Claim, Control
from deepjax.study.effective_fields import recalibrate_batch_norm
from deepjax.study.finetune import compiled_training, finish, iterate_training, snapshot
from deepjax.study.ladder import DEPTHS, LADDER, ladder_arm
from deepjax.study.preset import Preset
from deepjax.study.quantity import log, measured
from deepjax.study.report.study_figures import value_lines
from deepjax.study.runner import run_study
from deepjax.study.stats.rules import above, below, within
from deepjax.study.study import Options, SeedContext, Study
from deepjax.training import OpenRun, open_run

# Networks: those of the study of degradation, whose runs are reused.
KINDS = {"plain": "plain", "residual": "resnet"}
_, MIDDLE, DEEP = DEPTHS
ARMS = {
    f"{kind}{depth}": ladder_arm(kind, depth) for depth in DEPTHS[::-1] for kind in KINDS.values()
}

# Measurements, on so many images each.
CURVATURE, CONFUSION, LINE, SIMILARITY = 256, 64, 1000, 512
EPOCHS = (0.25, 0.5, 1.0, 2.0)  # when sharpness is measured; the peak of the rate is at 1
STARTS = {  # epochs after which two trainings of one network take different data
    "plain": {"same initial weights": 0},
    "residual": {"same initial weights": 0, "same first epoch": 1},
}
OTHER_DATA = 5000  # added to the seed of the second one
ALPHAS = tuple(np.linspace(0, 1, 11).round(1).tolist())


def sharpness(run: OpenRun, variables: Any, rate: float) -> float:
    """The Hessian's largest eigenvalue over the edge of stability, with batch statistics."""
    batch, options = run.batch(CURVATURE, "train", run.config.seed), run.config.optimization
    found = top_eigenvalues(
        run.model, variables, batch, 1, mode=TRAIN, which="largest", start="gradient", steps=8
    )
    edge = edge_of_stability(rate, options.momentum, options.nesterov)
    return float(found.values[0]) / edge


def opposed_gradients(run: OpenRun) -> float:
    """The fraction of pairs of examples with gradients of negative cosine, before the training."""
    batch = run.batch(CONFUSION, "train", run.config.seed)
    fresh = init_variables(run.model, jax.random.key(run.config.seed), batch["image"].shape)
    fresh = recalibrate_batch_norm(run.model, fresh, batch["image"])
    found = gradient_confusion(run.model, fresh, batch, chunk=CONFUSION)
    return float((found.pairs(found.cosines) < 0).mean())


def similarity(run: OpenRun) -> list[float]:
    """CKA between the outputs of consecutive blocks of a network."""
    images = run.batch(min(SIMILARITY, run.dataset.test_size), "test", run.config.seed)
    parts = [{name: values[i::4] for name, values in images.items()} for i in range(4)]
    found = cka(run.model, run.variables, parts, layers="stage*_block*")
    return np.diag(found.similarity, 1).tolist()


def permuted(variables: Any, seed: int) -> dict[str, Any]:
    """The same function, with the channels inside every basic block in another order."""
    rng = np.random.default_rng(seed)
    params, stats = dict(variables["params"]), dict(variables["batch_stats"])
    for name in [name for name in params if "_block" in name]:
        block = params[name]
        order = rng.permutation(block["conv1"]["kernel"].shape[-1])
        params[name] = {
            **block,
            "conv1": {"kernel": block["conv1"]["kernel"][..., order]},
            "norm1": {each: values[order] for each, values in block["norm1"].items()},
            "conv2": {"kernel": block["conv2"]["kernel"][:, :, order]},
        }
        norm = {each: values[order] for each, values in stats[name]["norm1"].items()}
        stats[name] = {**stats[name], "norm1": norm}
    return {"params": params, "batch_stats": stats}


def line_to(run: OpenRun, other: Any) -> dict[str, Any]:
    """Test errors in per cent on the line from a run's end to other variables, and their barrier.

    Batch statistics are computed again at every point.
    """
    batch = run.batch(min(LINE, run.dataset.test_size), "test", run.config.seed)
    alphas = np.array(ALPHAS)
    found = linear_interpolation(run.model, run.variables, other, batch, mode=TRAIN, alphas=alphas)
    errors = [100 * (1 - row["accuracy"]) for row in found.rows()]
    return {"errors": errors, "barrier": 100 * found.error_barrier}


def in_training(run: OpenRun, arm: Arm, starts: Any) -> tuple[list[float], dict[str, Any]]:
    """Sharpness at `EPOCHS` of a run, trained again; its ends with other data from `starts` on."""
    config, programs = run.config, compiled_training(run.config, run.data_dir, arm.make)
    at = [round(epoch * config.steps_per_epoch) for epoch in EPOCHS]
    found, snapshots = [], {}
    for step, state in iterate_training(programs, config):
        for name, epoch in starts.items():
            if step == epoch * config.steps_per_epoch:
                snapshots[name] = snapshot(state)
        if step in at:
            rate = config.learning_rate * float(np.asarray(programs.schedule(step)))
            variables = {"params": state.params, "batch_stats": state.batch_stats}
            found.append(sharpness(run, variables, rate))
        if step == max(at):
            break
    other = replace(config, seed=config.seed + OTHER_DATA)
    return found, {name: finish(programs, other, each) for name, each in snapshots.items()}


def measure(context: SeedContext) -> dict[str, Any]:
    """By kind and, where it matters, by depth."""
    at_end, opposed, course, alike, lines, points = {}, {}, {}, {}, {}, []
    for kind, model in KINDS.items():
        arms = {depth: f"{model}{depth}" for depth in DEPTHS if f"{model}{depth}" in context.runs}
        runs = {
            depth: open_run(context.runs[arm], data_dir=context.data_dir, make=ARMS[arm].make)
            for depth, arm in arms.items()
        }
        opposed[kind] = {str(depth): opposed_gradients(run) for depth, run in runs.items()}
        at_end[kind] = {
            str(depth): sharpness(run, run.variables, run.config.learning_rate)
            for depth, run in runs.items()
        }
        rates = [run.config.learning_rate for run in runs.values()]
        points += zip(np.log(rates), np.log(list(at_end[kind].values())), strict=True)
        alike[kind] = similarity(runs[max(runs)])
        depth = context.preset.sizes["depth"]
        course[kind], ends = in_training(runs[depth], ARMS[arms[depth]], STARTS[kind])
        ends["permuted copy"] = permuted(runs[depth].variables, context.seed)
        lines[kind] = {name: line_to(runs[depth], other) for name, other in ends.items()}
        context.progress(len(course), len(KINDS))
    found = {"at the end": at_end, "in training": course, "opposed": opposed, "CKA": alike}
    # The edge goes as 1 / rate.
    x, y = np.transpose(points)
    exponent = np.polyfit(x, y, 1)[0] - 1 if np.ptp(x) else np.nan
    return found | {"line": lines, "exponent": float(exponent)}


# Rules, fixed before the runs, with a look at pilot seeds only. Gradient descent ends at the edge
# of stability, which goes as 1 / rate (Cohen et al. 2021), small batches below it. Networks are
# linearly connected if the error rises by less than 2 points in between (Frankle et al. 2020).
TENTH, INVERSE, CONNECTED = float(np.log(0.1)), (-1.2, -0.8), 2.0
PLAIN, RESIDUAL = (f"plain{MIDDLE}",), (f"resnet{MIDDLE}",)


def barrier(kind: str, line: str) -> Any:
    """The barrier of the test error between two networks."""
    name = f"barrier, {kind}, {line}"
    return measured("line", kind, line, "barrier", name=name, unit=" points")


BETWEEN_PLAIN, BETWEEN_RESIDUAL = (barrier(kind, "same initial weights") for kind in KINDS)
CLAIMS = (
    Claim(
        f"At the peak of the learning rate the sharpness of networks of {MIDDLE} layers lies below "
        "the edge of stability, by less than a factor of ten.",
        [
            log(measured("in training", kind, EPOCHS.index(1.0), name=f"sharpness / edge, {kind}"))
            for kind in KINDS
        ],
        within(TENTH, 0), interest=-TENTH / 2, measures=PLAIN + RESIDUAL,
    ),
    Claim(
        "At the end of the training the sharpness of six networks, plain and residual of 8 to 44 "
        "layers, is inversely proportional to the peak of their own learning rates.",
        measured("exponent", name="exponent of the rate in the sharpness"), within(*INVERSE),
        interest=0.2, measures=tuple(ARMS),
    ),
    Claim(
        f"Two trainings of the plain network of {MIDDLE} layers from the same initial weights with "
        "different data end with a barrier of the error between them.", BETWEEN_PLAIN,
        above(CONNECTED), interest=CONNECTED, measures=PLAIN, exploratory=UNDERPOWERED,
    ),
    Claim(
        "The barrier between trainings from the same initial weights is higher for the plain "
        f"network of {MIDDLE} layers than for the residual one.",
        BETWEEN_PLAIN - BETWEEN_RESIDUAL, above(0), interest=CONNECTED,
        measures=PLAIN + RESIDUAL, exploratory=UNDERPOWERED,
    ),
    Claim(
        f"Two trainings of the residual network of {MIDDLE} layers that have their first epoch in "
        "common end in linearly connected networks.",
        barrier("residual", "same first epoch"), below(CONNECTED), interest=CONNECTED,
        measures=RESIDUAL,
    ),
    Claim(
        "Before the training more pairs of examples have opposed gradients in the plain network "
        f"of {DEEP} layers than in the residual one.",
        measured("opposed", "plain", str(DEEP)) - measured("opposed", "residual", str(DEEP)),
        above(0), interest=0.1, exploratory=UNDERPOWERED,
    ),
    Claim(
        f"In the trained residual network of {DEEP} layers the outputs of consecutive blocks are "
        "more alike than in the plain one.",
        measured("CKA", "residual") - measured("CKA", "plain"), above(0), interest=0.1,
        measures=(f"plain{DEEP}", f"resnet{DEEP}"),
    ),
    Control(
        "Planted defect: there is a barrier between a network and its copy with the channels "
        "inside the blocks in another order.",
        [barrier(kind, "permuted copy") for kind in KINDS], above(CONNECTED),
        expected=("supported",), defect=True,
    ),
)  # fmt: skip
BY_KIND = "Mean over seeds, band from the least to the greatest."
FIGURES = (
    value_lines(
        "sharpness",
        f"Sharpness over the edge of stability of the rate, which peaks at epoch 1. {BY_KIND}",
        {kind: ("in training", kind) for kind in KINDS},
        ("epoch", "sharpness / edge of stability"), EPOCHS, y_scale="log",
        claim="At the peak of the learning rate", reference={"edge": [1.0] * len(EPOCHS)},
    ),
    value_lines(
        "line",
        f"Test error on the line between the ends of two trainings. {BY_KIND}",
        {
            f"{kind}, {line}": ("line", kind, line, "errors")
            for kind in KINDS for line in STARTS[kind]
        },
        ("weight of the second network", "test error (%)"), ALPHAS, claim="The barrier between",
    ),
    value_lines(
        "similarity",
        f"CKA of each block's output with that of the block before. {BY_KIND}",
        {kind: ("CKA", kind) for kind in KINDS}, ("block", "CKA with the block before"),
        claim=f"In the trained residual network of {DEEP} layers",
    ),
    value_lines(
        "depth",
        f"Sharpness at the end over the edge of stability of the peak rate. {BY_KIND}",
        {kind: ("at the end", kind) for kind in KINDS}, ("layers", "sharpness / edge of stability"),
        x_scale="log", y_scale="log", claim="At the end of the training",
    ),
    value_lines(
        "confusion",
        f"Fraction of pairs of examples with opposed gradients before the training. {BY_KIND}",
        {kind: ("opposed", kind) for kind in KINDS}, ("layers", "fraction of opposed pairs"),
        x_scale="log", claim="Before the training more pairs",
    ),
)  # fmt: skip
STUDY = Study(
    name="trained_networks",
    title="How do trained plain and residual networks differ?",
    lecture=(
        "Training keeps the curvature near what the rate allows (Cohen et al. 2021); networks with "
        "a common beginning are linearly connected (Frankle et al. 2020); shortcuts keep gradients "
        "from opposing each other (Sankararaman et al. 2020), and blocks refine (Greff et al. 2017)"
    ),
    arms=ARMS,
    presets={
        "quick": Preset(
            "digits", 2, judged=False, rate=0.1, arms=("resnet8", "plain8"), sizes={"depth": 8},
            training={"epochs": 6, "batch_size": 64, "width": 4},
        ),
        "small": Preset(
            "fashion_mnist_small", 6, training=LADDER, pilots="degradation", sizes={"depth": MIDDLE}
        ),
    },
    measure=measure,
    claims=CLAIMS,
    figures=FIGURES,
    method=(
        "The networks of the study of degradation. Sharpness is the largest eigenvalue of the "
        "Hessian on 256 training images with batch statistics; the edge is that of gradient "
        "descent with momentum. Lines are between networks trained in different orders of the "
        "images. Gradients of 64 images are compared in pairs; CKA is linear, on 512 test images."
    ),
    limits=(
        "Each network has its own learning rate, so rate and shortcuts are not separated; twelve "
        "epochs are no long training, and layers that are alike are not superfluous."
    ),
    beyond=True,
)  # fmt: skip

if __name__ == "__main__":
    run_command(lambda: run_study(STUDY, parse(Options)))
