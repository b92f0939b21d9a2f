"""What does the 1x1 bottleneck of an Inception module save, and is each branch needed?

Szegedy et al. 2014 (arXiv:1409.4842).

python experiments/inception_module.py          # digits: about three minutes on two CPU cores
python experiments/inception_module.py --dataset fashion_mnist
"""

from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from deepjax.analysis import macs_by_layer
from deepjax.command_line import parse, run_command
from deepjax.errors import require, unknown_name_error
from deepjax.models.googlenet import Inception, Row, Unit, conv_unit
from deepjax.models.layers.basic import conv_factory
from deepjax.models.layers.initializers import he_normal
from deepjax.models.layers.norms import norm_factory
from deepjax.models.layers.pooling import global_avg_pool, max_pool
from deepjax.study.arms import Arm
from deepjax.study.cost import TrainingStep, cost_table, median_seconds
from deepjax.study.report.html import Figure
from deepjax.study.report.plots import cost_error_panel, rows_figure
from deepjax.study.runner import run_study
from deepjax.study.stats.claims import ablation_verdict, lower_error
from deepjax.study.stats.rules import above, exact_verdict
from deepjax.study.stats.verdict import Verdict
from deepjax.study.study import Options, Preset, SeedContext, Study, StudyResults, make_arm

# cs231n 2017, lecture 9: the module by which the cost of both kinds is worked out.
SLIDE = Row(conv1x1=128, reduce3x3=64, conv3x3=192, reduce5x5=64, conv5x5=96, project=64)
SLIDE_INPUT = (28, 28, 256)
BRANCHES = {
    "1x1": ("conv1x1",),
    "3x3": ("reduce3x3", "conv3x3"),
    "5x5": ("reduce5x5", "conv5x5"),
    "pool": ("project",),
}


def slide_module(reduce: bool) -> Inception:
    """The slide's module; `reduce=False` is the naive one."""
    conv = conv_factory(he_normal, jnp.float32, jnp.float32)
    norm = norm_factory("none", False, "global", jnp.float32, jnp.float32)
    return Inception(SLIDE, 5, reduce, conv_unit(conv, norm))


class InceptionNet(nn.Module):
    """3x3 convolution, the slide's module, max pool, the module, average pool, linear; batch norm.

    images: (batch, height, width, channels) -> float32 logits (batch, num_classes).
    `width`: filters of the first convolution, 256 on the slide; the modules' filters scale with it.
    `reduce=False`: naive modules. `without`: branches of `BRANCHES` that both modules lack; raises
    InputError for an unknown one, and for a naive module's pool.
    """

    num_classes: int = 10
    width: int = 32
    reduce: bool = True
    without: tuple[str, ...] = ()
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        for branch in self.without:
            if branch not in BRANCHES:
                raise unknown_name_error("branch", branch, BRANCHES)
        allowed = self.reduce or "pool" not in self.without
        require(allowed, "without", self.without, "no 'pool' in naive modules")
        conv = conv_factory(he_normal, self.dtype, jnp.float32)
        unit = conv_unit(conv, norm_factory("batch", train, "global", self.dtype, jnp.float32))
        row = Row(*(max(1, filters * self.width // SLIDE_INPUT[2]) for filters in SLIDE))
        x = unit(jnp.asarray(images, self.dtype), self.width, 3, "stem_conv")
        x = Inception(row, 5, self.reduce, _ablate(unit, self.without), name="inception1")(x)
        x = max_pool(x, 3, 2, padding=1)
        x = Inception(row, 5, self.reduce, _ablate(unit, self.without), name="inception2")(x)
        return nn.Dense(self.num_classes, dtype=jnp.float32, name="head")(global_avg_pool(x))


def _ablate(unit: Unit, without: tuple[str, ...]) -> Unit:
    """The unit, with no channels for the layers of an ablated branch: nothing to concatenate."""
    gone = {name for branch in without for name in BRANCHES[branch]}

    def ablated(x: Array, features: int, kernel: int, name: str) -> Array:
        return x[..., :0] if name in gone else unit(x, features, kernel, name)

    return ablated


# Rules, fixed before the runs; those of accuracy are in study/stats/claims.py. Controls: the rule
# that judges 358 million must accept 854 million; a module must not be judged twice as fast as
# itself; modules of 1x1 branches alone, which see no neighbours, must be judged worse than naive
# ones.
NAIVE, BOTTLENECK = 854_196_224, 271_351_808
COUNTS = (
    "Worked out, not measured: supported if the modules' multiply-adds are these, to the last; "
    "else refuted."
)
TAUGHT = (
    "Worked out, not measured: supported if the multiply-adds round to the millions that are "
    "taught; else refuted."
)
SAVES = above("naive over bottleneck", 2.0)  # of 3.15 times in multiply-adds
TOLERANCE = 0.01  # a branch without which the error rises by less is not needed

# At half the width two naive modules cost as much as two with bottleneck, within 0.1 %; with the
# stem the naive network costs 4 % less.
NETWORKS: dict[str, tuple[float, dict[str, Any]]] = {
    "bottleneck": (1.0, {}),
    "naive": (0.5, {"reduce": False}),
    **{f"without_{branch}": (1.0, {"without": (branch,)}) for branch in BRANCHES},
    "only_1x1": (1.0, {"without": ("3x3", "5x5", "pool")}),
}
PAPER = "no source: 6.67 % top-5 error of GoogLeNet on ImageNet is of bottlenecks with all branches"
SHARED: dict[str, Any] = {"seeds": 5, "rates": (0.1, 0.03), "sizes": {"batch": 4, "repeats": 5}}
PRESETS = {  # digits in 10 epochs: in 6 the networks were not trained (a pilot, seed 1000)
    "digits": Preset(
        PAPER, training={"epochs": 10, "batch_size": 64, "width": 16, "image_size": 16}, **SHARED
    ),
    "fashion_mnist": Preset(
        PAPER,
        training={"steps": 300, "batch_size": 128, "width": 16, "warmup_epochs": 0.1},
        **SHARED,
    ),
    "cifar10": Preset(
        f"{PAPER}; not measured here",
        training={"epochs": 60, "batch_size": 128, "width": 256},
        **SHARED,
    ),
}


def make_arms(options: Options, preset: Preset) -> dict[str, Arm]:
    """An arm for each network."""
    arms = {}
    for name, (share, fields) in NETWORKS.items():
        width = int(preset.training["width"] * share)
        arms[name] = make_arm(
            name,
            f"own/inception_{name}",
            options,
            preset,
            partial(InceptionNet, **fields),
            width=width,
        )
    return arms


def measure(context: SeedContext) -> dict[str, Any]:
    """Time and memory of a training step: both modules, and the bottleneck module once more."""
    shape = (context.preset.sizes["batch"], *SLIDE_INPUT)
    naive, bottleneck = (
        TrainingStep(slide_module(reduce), shape, context.seed) for reduce in (False, True)
    )
    steps = {"naive": naive, "bottleneck": bottleneck, "itself": bottleneck}
    seconds = median_seconds(steps, context.preset.sizes["repeats"])
    return {"seconds": seconds, "bytes": {name: s.temporary_bytes for name, s in steps.items()}}


def judge(results: StudyResults) -> list[Verdict]:
    """Six claims, and a control of three of their rules."""
    macs = {
        name: macs_by_layer(slide_module(name == "bottleneck"), SLIDE_INPUT)
        for name in ("naive", "bottleneck")
    }
    sums = {name: sum(by_layer.values()) for name, by_layer in macs.items()}
    three = macs["bottleneck"]["conv3x3"]
    arms = results.arms
    slide = "the slide's module on 28 x 28 x 256 (cs231n 2017, lecture 9)"

    def taught(name: str, millions: int, *working: str, **more: Any) -> Verdict:
        claim = f"The {name} module takes {millions} million multiply-adds, as is widely taught."
        holds = round(sums[name] / 1e6) == millions
        found = f"the {name} module's terms add up to {sums[name]:,}"
        how = f"Multiply-adds of {slide}, traced."
        return exact_verdict(claim, how, TAUGHT, holds, found, *working, **more)

    def saves(
        claim: str, key: str, first: str = "naive", second: str = "bottleneck", **more: Any
    ) -> Verdict:
        pairs = zip(results.values(key, first), results.values(key, second), strict=True)
        how = (
            f"Training step of {slide}, {results.preset.sizes['batch']} images, float32; ratio by "
            "seed, Student's 95 % interval."
        )
        return SAVES.verdict(
            claim, how, {f"{key}, {first} over {second}": [a / b for a, b in pairs]}, **more
        )

    def more_accurate(claim: str, one: str, other: str, control: Any = ()) -> Verdict:
        return lower_error(claim, results.with_cost(one), results.with_cost(other), control)

    claim = f"The naive module takes {NAIVE:,} multiply-adds, that with bottleneck {BOTTLENECK:,}."
    counted = (
        f"naive {sums['naive']:,}, bottleneck {sums['bottleneck']:,}: "
        f"{sums['naive'] / sums['bottleneck']:.2f} to 1"
    )
    exact = sums == {"naive": NAIVE, "bottleneck": BOTTLENECK}
    slip = (
        f"{sums['bottleneck']:,} + {three:,}, the 3x3 term a second time, are "
        f"{sums['bottleneck'] + three:,}"
    )
    equal = "At equal multiply-adds modules with bottleneck are more accurate."
    alone = "The 1x1 branches alone are more accurate."
    without = {f"the {branch} branch": arms[f"without_{branch}"] for branch in BRANCHES}
    return [
        exact_verdict(claim, f"Multiply-adds of {slide}, traced.", COUNTS, exact, counted),
        taught("bottleneck", 358, slip),
        saves("The bottleneck at least halves the time of a training step.", "seconds"),
        saves("The bottleneck at least halves the memory of a training step.", "bytes"),
        more_accurate(equal, "bottleneck", "naive"),
        ablation_verdict(
            "Each of the four branches is needed: without it the test error rises.",
            arms["bottleneck"],
            without,
            TOLERANCE,
        ),
        taught("naive", 854, control=("supported",)),
        saves(
            "Against itself the bottleneck halves the time.",
            "seconds",
            "bottleneck",
            "itself",
            control=("refuted",),
        ),
        more_accurate(alone, "only_1x1", "naive", control=("refuted",)),
    ]


def draw(results: StudyResults, out: Path) -> list[Figure]:
    """Cost ratios of the naive module; errors of each network, without the control."""
    arms = {name: results.arms[name] for name in NETWORKS if name != "only_1x1"}
    macs = {name: cost.macs for name, cost in results.costs.items()}
    sets: tuple[Literal["test", "train"], ...] = ("test", "train")
    errors = [cost_error_panel(arms, macs, which, "bottleneck", ("naive",)) for which in sets]
    steps = {"multiply-adds": [NAIVE / BOTTLENECK] * 2}
    for key, label in (("seconds", "time"), ("bytes", "memory")):
        pairs = zip(results.values(key, "naive"), results.values(key, "bottleneck"), strict=True)
        steps[f"{label} of a training step"] = [one / other for one, other in pairs]
    maths, clock, memory = (float(np.mean(ratios)) for ratios in steps.values())
    title = (
        f"The naive module takes {maths:.2f} times the multiply-adds,\n{clock:.2f} times the time "
        f"and {memory:.2f} times the memory"
    )
    panel = (title, "naive module over that with bottleneck (times)", steps)
    bars = "seeds as dots, their mean, and its 95 % interval as a bar."
    step = f"A training step of the slide's module on 28 x 28 x 256: {bars}"
    final = f"Final error on {results.options.dataset}: {bars}"
    return [
        Figure(rows_figure([panel], out / "step.png"), step),
        Figure(rows_figure(errors, out / "error.png"), final),
    ]


METHOD = (
    "A network is a 3x3 convolution, two of the slide's modules scaled to its width, a 3x3 max "
    "pool of stride 2 between them, an average pool and a linear layer, all with batch norm. "
    "Naive modules have half the width, which makes their cost that of the others."
)
LIMITS = [
    "A network without a branch has also fewer channels, weights and multiply-adds; the other "
    "branches were not made wider for it.",
    "Four branches are four looks: one that is worth exactly 1 point each would be called spare "
    "in up to 10 % of studies.",
]
STUDY = Study(
    name="inception_module",
    lecture=(
        "GoogLeNet: filters of many sizes at once; the naive module is too costly; 1x1 "
        "bottlenecks make it affordable"
    ),
    title="What does the 1x1 bottleneck save, and is each branch of an Inception module needed?",
    question=(
        "A naive Inception module runs every filter size over all channels. What does it save to "
        "reduce them first: on paper, on the clock, in memory; what does that do for accuracy at "
        "equal cost; and does each filter size earn its place?"
    ),
    presets=PRESETS,
    arms=make_arms,
    measure=measure,
    judge=judge,
    draw=draw,
    method=lambda results: [METHOD],
    limits=lambda results: LIMITS,
    tables=lambda results: [cost_table(results.costs)],
)

if __name__ == "__main__":
    run_command(lambda: run_study(STUDY, parse(Options)))
