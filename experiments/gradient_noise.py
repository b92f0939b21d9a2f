"""Does the gradient noise scale grow as the loss falls, and does it predict the batch size?

McCandlish et al. 2018, "An empirical model of large-batch training" (arXiv:1812.06162).

python experiments/gradient_noise.py                 # a minute on two cores, no verdicts
python experiments/gradient_noise.py --preset small  # Fashion-MNIST at 14x14: 4 minutes
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike
from matplotlib.figure import Figure

from deepjax.analysis import noise_scale
from deepjax.analysis.plots import COLORS, Curve
from deepjax.command_line import parse, run_command
from deepjax.data import dataset_info, sample
from deepjax.models.layers.basic import conv_factory
from deepjax.models.layers.initializers import he_normal
from deepjax.study.claim import Claim, Control
from deepjax.study.finetune import LossOf, fewest_steps, iterate_training, loss_on
from deepjax.study.preset import Preset
from deepjax.study.quantity import measured
from deepjax.study.report.plots import LinesPanel, lines_figure
from deepjax.study.report.study_figures import StudyFigure
from deepjax.study.results import StudyResults
from deepjax.study.runner import run_study
from deepjax.study.stats.hyperbola import Hyperbola, fit_hyperbola
from deepjax.study.stats.rules import below, within
from deepjax.study.study import Options, SeedContext, Study
from deepjax.training import (
    CompiledTraining,
    RunOptions,
    TrainConfig,
    compile_training,
    train_config,
)

# The network, as in the theory: no batch norm, with which a single image has no gradient of its
# own, and no momentum.


class StridedNetwork(nn.Module):
    """Two 3x3 convolutions of stride 2, and a linear layer on all of their outputs."""

    num_classes: int = 10
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        conv = conv_factory(he_normal, self.dtype, jnp.float32, use_bias=True)
        x = jnp.asarray(images, self.dtype)
        for i, width in enumerate((16, 32), 1):
            x = nn.relu(conv(width, 3, 2, name=f"conv{i}")(x))
        x = x.reshape(x.shape[0], -1)
        return nn.Dense(self.num_classes, dtype=jnp.float32, name="head")(x)


SGD = {
    "schedule": "constant", "warmup_epochs": 0.0, "momentum": 0.0, "nesterov": False,
    "weight_decay": 0.0, "augment": False,
}  # fmt: skip

# Measurements. The noise scale is estimated at these fractions of the steps that the probe's batch
# size needs to the target.
ON_THE_WAY, BEYOND = tuple(np.linspace(0, 1, 7).tolist()), (1.5, 2.0, 3.0)


@dataclass(frozen=True)
class NoiseScaleEstimator:
    """The noise scale from `count` batches of `big` images, split into parts of `small`.

    McCandlish et al. 2018, appendix A.1.
    """

    count: int = 16
    small: int = 16
    big: int = 256
    copies: int = 1
    """Of each image in its part; 2 doubles the variance of the parts' gradients."""

    def scale(
        self, programs: CompiledTraining, params: Any, data: Any, rng: np.random.Generator
    ) -> float:
        """The noise scale on these images, sampled with replacement; NaN if no signal was found."""
        different = self.big // self.copies
        ids = [
            np.repeat(rng.integers(len(data["label"]), size=different), self.copies)
            for _ in range(self.count)
        ]
        batches = [{name: array[each] for name, array in data.items()} for each in ids]
        return noise_scale(programs.model, {"params": params}, batches, small=self.small).scale


def noise_during_training(
    at: Sequence[int], programs: CompiledTraining, config: TrainConfig, loss_of: LossOf, data: Any
) -> dict[str, list[float]]:
    """At these steps of one training: the loss, and the noise scale, also of doubled images."""
    rng = np.random.default_rng(config.seed)
    losses, scales, doubled = [], [], []
    for step, state in iterate_training(programs, config):
        if step in at:
            losses.append(loss_of(state.params))
            scales.append(NoiseScaleEstimator().scale(programs, state.params, data, rng))
            twice = NoiseScaleEstimator(copies=2)
            doubled.append(twice.scale(programs, state.params, data, rng))
        if step == max(at):
            break
    return {"losses": losses, "scales": scales, "doubled": doubled}


def exponent(losses: Sequence[float], scales: Sequence[float]) -> float:
    """The exponent of the loss in the noise scale: the least-squares slope of the logarithms."""
    return float(np.polyfit(np.log(losses), np.log(scales), 1)[0])


def mean_scale(at: Sequence[int], scales: Sequence[float]) -> float:
    """The mean noise scale over the steps on the way to the target, by trapezoids."""
    way = len(ON_THE_WAY)
    return float(np.trapezoid(scales[:way], at[:way]) / at[way - 1])


def measure(context: SeedContext) -> dict[str, Any] | None:
    """Steps to the target by batch size, each at its best rate, and the probe's noise scales.

    None where a batch size does not reach the target.
    """
    sizes, steps, rates = context.preset.sizes, [], []
    course: dict[str, Any] = {}
    data = sample(
        dataset_info(context.dataset), sizes["images"], context.seed, data_dir=context.data_dir
    )
    for batch in sizes["batches"]:
        config = train_config(
            "own/strided", context.dataset, batch_size=batch, seed=context.seed,
            **SGD | dict(context.preset.training),
        )  # fmt: skip
        programs = compile_training(
            config, RunOptions(data_dir=context.data_dir), make=StridedNetwork
        )
        loss_of = loss_on(programs.model, data)
        taken, rate = fewest_steps(programs, config, loss_of, sizes["target"], sizes["rates"])
        steps, rates = [*steps, taken], [*rates, rate]
        if batch == sizes["probe"] and math.isfinite(taken):
            at = [round(fraction * taken) for fraction in (*ON_THE_WAY, *BEYOND)]
            at_rate = replace(config, learning_rate=rate)
            course = {"at": at} | noise_during_training(at, programs, at_rate, loss_of, data)
        context.progress(len(steps), len(sizes["batches"]))
    if not np.isfinite(steps).all():
        return None
    fitted = fit_hyperbola(sizes["batches"], steps)
    mean = mean_scale(course["at"], course["scales"])
    return {
        "steps": steps,
        "rates": rates,
        "hyperbola": [fitted.s_min, fitted.e_min],
        "critical": fitted.critical,
        "mean scale": mean,
        "exponent": exponent(course["losses"], course["scales"]),
        "log10 ratio": float(np.log10(mean / fitted.critical)),
        "log2 of doubled": float(np.mean(np.log2(np.divide(course["doubled"], course["scales"])))),
        **course,
    }


# Rules, fixed before the runs. A step with B images makes 1 / (1 + noise scale / B) of the progress
# of a step without noise, so the steps add up to S_min + E_min / B, and E_min / S_min is the mean
# noise scale on the way; "within an order of magnitude" is the paper's own claim. If each image of
# a part has a copy in it, the variance of the part's gradient doubles, and with it the noise scale.
CLAIMS = (
    Claim(
        "The gradient noise scale grows as the loss falls.",
        measured("exponent", name="exponent of the loss in the noise scale"), below(0),
        interest=0.5,
    ),
    Claim(
        "The mean noise scale on the way to a loss is within an order of magnitude of the critical "
        "batch size.",
        measured("log10 ratio", name="log10 of mean noise scale over critical batch size"),
        within(-1, 1), interest=1.0,
    ),
    Control(
        "Planted defect: batches in which each image occurs twice have twice the noise scale.",
        measured("log2 of doubled", name="log2 of the noise scale over that of single images"),
        within(0.5, 1.5), expected=("supported",), defect=True,
    ),
)  # fmt: skip


def draw_noise(results: StudyResults, title: str) -> Figure:
    """The noise scale over the loss, a line for each seed."""
    curves = [
        Curve(f"_{i}", losses, [scales], COLORS[i % len(COLORS)], "o-")
        for i, (losses, scales) in enumerate(
            zip(results.values("losses"), results.values("scales"), strict=True)
        )
    ]
    axes = ("training loss", "noise scale (images)")
    return lines_figure(title, [LinesPanel("", curves)], axes, "log", "log")


def draw_steps(results: StudyResults, title: str) -> Figure:
    """Steps to the target by batch size, with the fitted hyperbola and the noise scale."""
    batches, target = results.preset.sizes["batches"], results.preset.sizes["target"]
    fine = np.geomspace(batches[0], batches[-1], 50).tolist()
    fits = [Hyperbola(*each) for each in results.values("hyperbola")]
    curves = [
        Curve("fit", fine, [[fit.steps(batch) for batch in fine] for fit in fits], COLORS[1]),
        Curve("_counted", batches, results.values("steps"), COLORS[0], "o"),
    ]
    axes = ("batch size (images)", f"steps to a loss of {target:g}")
    return lines_figure(title, [LinesPanel("", curves)], axes, "log", "log", x_ticks=batches)


FIGURES = (
    StudyFigure(
        "steps", draw_steps,
        "Steps to the target loss by batch size. Circles: at the best rate; line: the fitted (S / "
        "S_min - 1)(E / E_min - 1) = 1. Means over seeds, bands from least to greatest.",
        claim="The mean noise scale",
    ),
    StudyFigure(
        "noise", draw_noise,
        "Gradient noise scale by training loss. Training goes from right to left; a line for each "
        "seed.",
        claim="The gradient noise scale grows",
    ),
)  # fmt: skip
SIZES = {
    "batches": (8, 32, 128, 512), "probe": 32, "target": 0.35, "images": 2048,
    "rates": (0.1, 0.05, 0.2, 0.4, 0.8, 1.6),
}  # fmt: skip
STUDY = Study(
    name="gradient_noise",
    title="Does the noise of the gradient predict the batch size to train with?",
    lecture=(
        "A small batch's gradient is mostly noise, a large batch's mostly repeats itself; the "
        "noise scale predicts where more images save no more steps (McCandlish et al. 2018)"
    ),
    presets={
        "quick": Preset(
            "digits", 2, judged=False, training={"steps": 3000},
            sizes=SIZES | {"images": 1437, "rates": (0.1, 0.2, 0.4)},
        ),
        "small": Preset("fashion_mnist_small", 6, training={"steps": 12_000}, sizes=SIZES),
    },
    measure=measure,
    claims=CLAIMS,
    figures=FIGURES,
    method=(
        f"Two convolutions and a linear layer without batch norm under plain SGD, up to a training "
        f"loss of {SIZES['target']:g}. Steps are counted, to 10 %, for each batch size at the best "
        "of six rates of each seed; the noise scale is estimated from gradients of 16 and of 256 "
        "images."
    ),
    limits=(
        "A small network, a short training, and rates a factor of two apart: not where the best "
        "batch size lies for a deep network or a long training."
    ),
    beyond=True,
)  # fmt: skip

if __name__ == "__main__":
    run_command(lambda: run_study(STUDY, parse(Options)))
