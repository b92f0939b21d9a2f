"""Does the gradient noise scale grow as the loss falls, and does it predict the batch size?

McCandlish et al. 2018, "An empirical model of large-batch training" (arXiv:1812.06162).

python experiments/gradient_noise.py            # digits: about two minutes on two CPU cores
python experiments/gradient_noise.py --dataset fashion_mnist
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from deepjax.analysis import noise_scale
from deepjax.analysis.plots import COLORS, Curve
from deepjax.command_line import parse, run_command
from deepjax.data import dataset_info, sample
from deepjax.study.finetune import LossOf, fewest_steps, iterate_training, loss_on
from deepjax.study.networks import Stack
from deepjax.study.report.html import Figure
from deepjax.study.report.plots import lines_figure
from deepjax.study.runner import run_study
from deepjax.study.stats.claims import effects_as_ratios
from deepjax.study.stats.intervals import format_ratio
from deepjax.study.stats.rules import Rule, all_below, within
from deepjax.study.stats.scaling_laws import fit_hyperbola
from deepjax.study.stats.verdict import NOT_SUPPORTED, Verdict
from deepjax.study.study import Options, Preset, SeedContext, Study, StudyResults
from deepjax.training import (
    CompiledTraining,
    RunOptions,
    TrainConfig,
    compile_training,
    train_config,
)

# As in the theory: no batch norm, with which a single image has no gradient of its own, and no
# momentum. The noise scale is measured at these fractions of the steps that the probe's batch size
# needs to the target.
NETWORK = partial(Stack, (3,) * 3, width=16, norm=False)
ON_THE_WAY, BEYOND = tuple(np.linspace(0, 1, 7)), (1.5, 2.0, 3.0)

# Rules, fixed before the runs. A step with B images makes 1 / (1 + noise scale / B) of the progress
# of a step without noise, so the steps add up to S_min + E_min / B, and E_min / S_min is the mean
# noise scale on the way; "within an order of magnitude" is the paper's own claim. Controls: losses
# in random order must not show the growth, and the number of training images, another size at which
# a step has no noise, must not be judged equal to the critical batch size.
GROWS = Rule(
    "Supported if the interval lies below 0; refuted if above; else inconclusive.",
    partial(all_below, bound=0.0),
)
PREDICTS = within("the decimal logarithm of the ratio", -1.0, 1.0)
SGD = {
    "schedule": "constant",
    "warmup_epochs": 0.0,
    "momentum": 0.0,
    "nesterov": False,
    "weight_decay": 0.0,
    "augment": False,
}
RATES = (0.4, 0.2, 0.1, 0.05)
SIZES = {"batches": (2, 8, 32, 128), "probe": 32, "target": 0.4, "images": 1437}
PRESETS = {
    "digits": Preset(
        "growth, and a factor below ten; no number for this data is known",
        4,
        RATES,
        SGD | {"steps": 3000},
        SIZES,
    ),
    "fashion_mnist": Preset(
        "as on digits",
        3,
        RATES,
        SGD | {"steps": 5000, "image_size": 14},
        SIZES | {"target": 0.7, "images": 2048},
    ),
    "cifar10": Preset(
        "growth, and a factor below ten, as the paper claims; not measured here",
        rates=(0.8, *RATES),
        training=SGD | {"steps": 100_000},
        sizes={"batches": (16, 64, 256, 1024, 4096), "probe": 256, "target": 0.8, "images": 8192},
    ),
}


@dataclass(frozen=True)
class NoiseScaleEstimator:
    """The noise scale from `count` batches of `big` images, split into parts of `small`.

    McCandlish et al. 2018, appendix A.1.
    """

    count: int = 8
    small: int = 16
    big: int = 256

    def scale(
        self, programs: CompiledTraining, params: Any, data: Any, rng: np.random.Generator
    ) -> float:
        """The noise scale on these images, sampled with replacement; NaN if no signal was found."""
        ids = [rng.integers(len(data["label"]), size=self.big) for _ in range(self.count)]
        batches = [{name: array[each] for name, array in data.items()} for each in ids]
        return noise_scale(programs.model, {"params": params}, batches, small=self.small).scale


def noise_during_training(
    at: Sequence[int], programs: CompiledTraining, config: TrainConfig, loss_of: LossOf, data: Any
) -> dict[str, list[float]]:
    """Loss and noise scale at these steps of one training: {"at", "losses", "scales"}."""
    rng, estimator = np.random.default_rng(config.seed), NoiseScaleEstimator()
    losses, scales = [], []
    for step, state in iterate_training(programs, config):
        if step in at:
            losses.append(loss_of(state.params))
            scales.append(estimator.scale(programs, state.params, data, rng))
        if step == max(at):
            break
    return {"at": list(at), "losses": losses, "scales": scales}


def measure(context: SeedContext) -> dict[str, Any]:
    """Steps to the target by batch size, each at its best rate; and the probe's noise scales."""
    sizes, steps, rates, course = context.preset.sizes, [], [], {}
    image_size = context.preset.training.get("image_size", 0)
    data = sample(
        dataset_info(context.dataset),
        sizes["images"],
        context.seed,
        "train",
        image_size,
        context.data_dir,
    )
    for batch in sizes["batches"]:
        config = train_config(
            "own/stack",
            context.dataset,
            batch_size=batch,
            seed=context.seed,
            **context.preset.training,
        )
        programs = compile_training(config, RunOptions(data_dir=context.data_dir), make=NETWORK)
        loss_of = loss_on(programs.model, data)
        taken, rate = fewest_steps(programs, config, loss_of, sizes["target"], context.preset.rates)
        steps, rates = [*steps, taken], [*rates, rate]
        if batch == sizes["probe"]:
            at = [round(share * taken) for share in (*ON_THE_WAY, *BEYOND)]
            at_rate = replace(config, learning_rate=rate)
            course = noise_during_training(at, programs, at_rate, loss_of, data)
    context.progress(1, 1)
    return {"steps": steps, "rates": rates, **course}


def judge(results: StudyResults) -> list[Verdict]:
    """Two claims, and a control of each."""
    seeds, batches, way = results.measured, results.preset.sizes["batches"], len(ON_THE_WAY)
    critical = [fit_hyperbola(batches, seed["steps"]).critical for seed in seeds]

    def grows(claim: str, losses: list[list[float]], control: Any = ()) -> Verdict:
        slopes = [
            float(np.polyfit(np.log(x), np.log(seed["scales"]), 1)[0])
            for x, seed in zip(losses, seeds, strict=True)
        ]
        how = (
            "Slope of the logarithm of the noise scale over that of the training loss, by seed; "
            "Student's 95 % interval."
        )
        return GROWS.verdict(claim, how, {"exponent of the loss": slopes}, control=control)

    def predicts(claim: str, what: str, sizes: list[float], control: Any = ()) -> Verdict:
        logs = [
            float(np.log10(size / fitted)) for size, fitted in zip(sizes, critical, strict=True)
        ]
        how = (
            f"The {what} over the critical batch size of the hyperbola; log10, by seed, Student's "
            "95 % interval."
        )
        found = (
            f"critical batch size {np.mean(critical):.0f}, {what} {np.mean(sizes):.0f} images, or"
        )
        return effects_as_ratios(PREDICTS.verdict(claim, how, {found: logs}, control=control))

    rng, losses = np.random.default_rng(0), results.values("losses")
    order = "an order of magnitude of the critical batch size"
    lots = [rng.permutation(each).tolist() for each in losses]
    mean = [
        float(np.trapezoid(seed["scales"][:way], seed["at"][:way]) / seed["at"][way - 1])
        for seed in seeds
    ]
    images = [float(dataset_info(results.options.dataset).train_size)] * len(seeds)
    return [
        grows("The noise scale grows as the loss falls.", losses),
        predicts(
            f"The mean noise scale on the way to the target is within {order}.",
            "mean noise scale",
            mean,
        ),
        grows("The noise scale grows as losses fall that are drawn by lot.", lots, NOT_SUPPORTED),
        predicts(
            f"The number of training images is within {order}.",
            "number of training images",
            images,
            NOT_SUPPORTED,
        ),
    ]


def draw(results: StudyResults, out: Path) -> list[Figure]:
    """Noise scale against loss, and steps against batch size with the hyperbola."""
    sizes, (grows, predicts, *_) = results.preset.sizes, results.verdicts
    by_loss = [
        Curve(f"_{i}", seed["losses"], [seed["scales"]], COLORS[i % len(COLORS)], "o-")
        for i, seed in enumerate(results.measured)
    ]
    batches, y_label = sizes["batches"], f"steps to a loss of {sizes['target']:g}"
    fits = [fit_hyperbola(batches, seed["steps"]) for seed in results.measured]
    fine = np.geomspace(batches[0], batches[-1]).tolist()
    fitted = Curve("hyperbola", fine, [[fit.steps(b) for b in fine] for fit in fits], COLORS[1])
    counted = Curve("_counted", batches, results.values("steps"), COLORS[0], "o")
    slope, ratio = (next(iter(verdict.effects.values())) for verdict in (grows, predicts))
    first = (
        f"The noise scale goes as the loss to the power of\n{slope.effect:.2f} [{slope.low:.2f}, "
        f"{slope.high:.2f}]"
    )
    second = (
        f"Critical batch size {np.mean([fit.critical for fit in fits]):.0f} images,\nmean noise "
        f"scale {format_ratio(ratio)} that"
    )
    return [
        Figure(
            lines_figure(
                [(first, by_loss)],
                out / "noise.png",
                "training loss",
                "noise scale (images)",
                "log",
                "log",
            ),
            "Noise scale against loss in the course of training, from right to left; a line a "
            "seed. At first the loss stands.",
        ),
        Figure(
            lines_figure(
                [(second, [fitted, counted])],
                out / "steps.png",
                "batch size (images)",
                y_label,
                "log",
                "log",
            ),
            "Steps to the target by batch size, each at its best rate (circles), and (S / S_min "
            "- 1)(E / E_min - 1) = 1.",
        ),
    ]


STUDY = Study(
    name="gradient_noise",
    lecture="Training practice: the batch size",
    title="Does the noise of the gradient tell the batch size to train with?",
    question=(
        "A small batch's gradient is mostly noise, a large batch's mostly repeats itself. The "
        "noise scale, the variance of an image's gradient over the square of the mean, is where "
        "the two meet. Beyond it, do more images save no steps?"
    ),
    presets=PRESETS,
    measure=measure,
    judge=judge,
    draw=draw,
    method=lambda results: [
        "Three 3x3 convolutions without batch norm under plain SGD. Steps to the target are "
        "counted, to 10 %, for each batch size at the best of the rates of each seed; the noise "
        "scale is estimated from gradients of 16 and of 256 images."
    ],
    limits=lambda results: [
        "The theory asks for the best rate at each batch size; rates are a factor of two apart."
    ],
)

if __name__ == "__main__":
    run_command(lambda: run_study(STUDY, parse(Options)))
