"""How much of the image does a unit see, on paper and in effect?

Luo et al. 2016 (arXiv:1701.04128); Simonyan and Zisserman 2014.

python experiments/receptive_field.py           # digits: two minutes on two CPU cores
python experiments/receptive_field.py --dataset fashion_mnist
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from deepjax.analysis.plots import COLORS, Curve
from deepjax.command_line import parse, run_command
from deepjax.study.arms import Arm
from deepjax.study.effective_fields import (
    field_statistics,
    fields_of_run,
    normalized_maps,
    stack_field,
    theoretical_field,
)
from deepjax.study.networks import Activation, Stack
from deepjax.study.report.html import Figure
from deepjax.study.report.plots import LinesPanel, lines_figure, maps_figure, rows_figure
from deepjax.study.runner import run_study
from deepjax.study.stats.intervals import mean_interval
from deepjax.study.stats.rules import above, exact_verdict, within
from deepjax.study.stats.verdict import NOT_SUPPORTED, Verdict
from deepjax.study.study import Options, Preset, SeedContext, Study, StudyResults, make_arm

# Rules, fixed before the runs. Theory: n random k x k convolutions have a Gaussian field of sigma
# sqrt(n (k^2 - 1) / 12), so three 3x3 have 1.41 and one 7x7 has 2 pixels, though both see 7.
# Controls: two 3x3 do not see 7 pixels; three other 3x3 are as wide; the theoretical field grows as
# n; one 7x7 is a box, not a bell; 1x1 filters see one pixel before and after training.
EQUAL = (
    "Worked out, not measured: supported if both theoretical fields are equally large, else "
    "refuted."
)
ALIKE = within("the ratio of sigmas", 0.9, 1.1)
ROOT = within("the slopes", 0.4, 0.6)
BELL = above("R^2", 0.95)
GROWS = above("pixels after less before", 0.0)
KINDS: dict[str, Activation] = {"linear": "identity", "ReLU": "relu"}
# Kernels, and a number that is added to the seed.
SMALL = {"three 3x3": ((3, 3, 3), 0), "three other 3x3": ((3, 3, 3), 10_000), "one 7x7": ((7,), 0)}
POINTWISE = partial(Stack, (1,) * 4)
# Exploratory, the middle map was added after the first run on the digits: untrained, the last map's
# field was already 22 of 24 pixels wide. By name: arm, layer, what makes the network.
LAYERS: dict[str, tuple[str, str, Any]] = {
    "last map": ("resnet20", "stage3_block3", None),
    "middle map": ("resnet20", "stage2_block3", None),
    "1x1 map": ("pointwise", "conv4", POINTWISE),
}
SHARED: dict[str, Any] = {
    "seeds": 5,
    "rates": (0.1,),
    "sizes": {"depths": [5, 10, 20, 40], "draws": 12, "images": 100},
}
LUO = (
    "slopes of 0.5; sigma 1.41 and 2 pixels (theory); growth, as Luo et al. show for CIFAR-10 and "
    "CamVid (Figure 5)"
)
# Digits are enlarged, since 8 pixels would bound every field; to 24 instead of 32, and 4 epochs,
# for time (pilot on seed 1000).
PRESETS = {
    "digits": Preset(
        LUO, training={"epochs": 4, "batch_size": 64, "width": 8, "image_size": 24}, **SHARED
    ),
    "fashion_mnist": Preset(
        LUO, training={"steps": 300, "batch_size": 128, "width": 8, "warmup_epochs": 0.1}, **SHARED
    ),
    "cifar10": Preset(
        f"{LUO}; not measured here",
        training={"steps": 64_000, "batch_size": 128, "schedule": "step"},
        **SHARED,
    ),
}


def make_arms(options: Options, preset: Preset) -> dict[str, Arm]:
    """The network whose field is to grow, and one whose field cannot."""
    return {
        "resnet20": make_arm("resnet20", "cifar_resnet20", options, preset),
        "pointwise": make_arm("pointwise", "own/pointwise", options, preset, POINTWISE),
    }


def measure(context: SeedContext) -> dict[str, Any]:
    """Fields of random stacks by depth, of three 3x3 and one 7x7, of networks before and after."""
    sizes, seed, moments = context.preset.sizes, context.seed, {}
    draws = sizes["draws"]
    deep = {
        kind: [stack_field((3,) * n, activation, seed, draws) for n in sizes["depths"]]
        for kind, activation in KINDS.items()
    }
    small = {
        name: [stack_field(kernels, "relu", seed + more, 5 * draws)]
        for name, (kernels, more) in SMALL.items()
    }
    for name, (arm, layer, make) in LAYERS.items():
        fields = fields_of_run(context.runs[arm], layer, sizes["images"], context.data_dir, make)
        moments[name] = field_statistics(fields) | {"maps": normalized_maps(fields)}
    stacks, few = (
        {name: field_statistics(fields) for name, fields in each.items()} for each in (deep, small)
    )
    return {"stacks": stacks, "small": few, "training": moments}


def judge(results: StudyResults) -> list[Verdict]:
    """Six claims of the lecture and of Luo et al., and a control of each."""
    depths = results.preset.sizes["depths"]

    def sees(count: str, kernels: tuple[int, ...], **more: Any) -> Verdict:
        one, other = theoretical_field(kernels), theoretical_field((7,))
        claim = f"{count} 3x3 convolutions see as many pixels as one 7x7."
        how = "Theoretical field, from the traced computation."
        found = f"{count} 3x3 see {one} x {one} pixels, one 7x7 sees {other} x {other}"
        return exact_verdict(claim, how, EQUAL, one == other, found, **more)

    def alike(other: str, **more: Any) -> Verdict:
        three, one = (results.values("small", name, "sigma", 0) for name in ("three 3x3", other))
        name = f"sigma {np.mean(three):.2f} over {np.mean(one):.2f} pixels"
        ratios = {name: [a / b for a, b in zip(three, one, strict=True)]}
        how = (
            "Standard deviation of the untrained field (mean of gradient^2), ratio seed by seed; "
            "Student's 95 % interval."
        )
        return ALIKE.verdict(
            f"Three 3x3 convolutions have the same effective field as {other}.", how, ratios, **more
        )

    def root(what: str, by_seed: dict[str, Any], **more: Any) -> Verdict:
        values = {
            name: [float(np.polyfit(np.log(depths), np.log(y), 1)[0]) for y in rows]
            for name, rows in by_seed.items()
        }
        how = (
            "Slope of log(pixels) over log(layers) by least squares, seed by seed; Student's 95 % "
            "interval over seeds."
        )
        return ROOT.verdict(
            f"The {what} field of an untrained stack grows as the square root of its depth.",
            how,
            values,
            **more,
        )

    def bell(what: str, r2: dict[str, list[float]], **more: Any) -> Verdict:
        how = (
            "R^2 of the Gaussian with the map's own moments, a map a seed (mean over draws); "
            "Student's 95 % interval."
        )
        return BELL.verdict(f"The effective field of {what} is a Gaussian.", how, r2, **more)

    def grows(what: str, name: str, **more: Any) -> Verdict:
        values = {key: results.values("training", name, key) for key in ("size", "sigma")}
        changes = {
            f"{key} in pixels, after less before": [b - a for a, b in by_seed]
            for key, by_seed in values.items()
        }
        how = (
            "Effective field of the map's centre unit, after less before training, seed by seed; "
            "Student's 95 % interval."
        )
        return GROWS.verdict(
            f"The effective field of {what} grows with training.", how, changes, **more
        )

    stacks = {
        f"{key}, {kind}": results.values("stacks", kind, key)
        for kind in KINDS
        for key in ("size", "sigma")
    }
    bells = {
        f"{kind}, {n} layers": results.values("stacks", kind, "r2", i)
        for kind in KINDS
        for i, n in enumerate(depths)
    }
    paper = [[theoretical_field((3,) * depth) for depth in depths]] * len(results.measured)
    return [
        sees("Three", (3, 3, 3)),
        alike("one 7x7"),
        root("effective", stacks),
        bell("an untrained stack", bells),
        grows("a residual network's last map", "last map"),
        grows("its middle map, which has room in the image,", "middle map"),
        sees("Two", (3, 3), control=("refuted",)),
        alike("three other 3x3", control=("supported",)),
        root("theoretical", {"pixels": paper}, control=("refuted",)),
        bell(
            "one 7x7 convolution",
            {"one 7x7": results.values("small", "one 7x7", "r2", 0)},
            control=("refuted",),
        ),
        grows("a network of 1x1 convolutions", "1x1 map", control=NOT_SUPPORTED),
    ]


def depth_panel(
    kind: str,
    depths: Sequence[int],
    sizes: Sequence[Sequence[float]],
    sigmas: Sequence[Sequence[float]],
) -> LinesPanel:
    """Fields of stacks of 3x3 convolutions by depth; the title has the power of the size.

    sizes, sigmas: (seeds, depths), in pixels.
    """
    slope = float(np.polyfit(np.log(depths), np.log(np.mean(sizes, 0)), 1)[0])
    sides = [float(theoretical_field((3,) * depth)) for depth in depths]
    theory = [float(np.sqrt(2 * depth / 3)) for depth in depths]
    curves = [
        Curve("theoretical", depths, [sides], COLORS[1]),
        Curve("effective", depths, sizes, COLORS[0]),
        Curve("sigma", depths, sigmas, COLORS[2]),
        Curve("_theory of sigma", depths, [theory], "black", ":"),
    ]
    return f"{kind}: the effective field grows\nas depth to the power {slope:.2f}", curves


def draw(results: StudyResults, out: Path) -> list[Figure]:
    """Growth over depth; the two ways to see seven pixels; the field before and after training."""
    depths = results.preset.sizes["depths"]
    panels = [
        depth_panel(
            kind, depths, *(results.values("stacks", kind, key) for key in ("size", "sigma"))
        )
        for kind in KINDS
    ]
    small = {name: results.values("small", name, "sigma", 0) for name in ("three 3x3", "one 7x7")}
    three, one = map(np.mean, small.values())
    title = (
        f"Both see 7 pixels; in effect three 3x3\nare {three / one:.2f} times as wide as one 7x7"
    )
    trained = []
    for layer in ("middle map", "last map"):
        before, after = np.mean(results.values("training", layer, "maps"), 0)
        change = mean_interval([b - a for a, b in results.values("training", layer, "sigma")])
        sigma = f"{change.effect:+.1f} [{change.low:+.1f}, {change.high:+.1f}] pixels"
        name = f"{layer[0].upper()}{layer[1:]} before training"
        trained.append([(name, before), (f"After: sigma {sigma}", after)])
    band = (
        "Untrained stacks of 3x3. Band: from least to greatest seed; dotted: sqrt(2 n / 3), the "
        "theory of sigma."
    )
    return [
        Figure(
            lines_figure(
                panels, out / "depth.png", "layers of 3x3 convolutions", "pixels", "log", "log"
            ),
            band,
        ),
        Figure(
            rows_figure([(title, "sigma (pixels)", small)], out / "seven.png"),
            "Untrained; bar: 95 % interval.",
        ),
        Figure(
            maps_figure(trained, out / "training.png", "mean gradient² / its peak"),
            "What moves the centre unit of a map of ResNet-20.",
        ),
    ]


METHOD = (
    "The effective field weighs each pixel by how much it moves the centre unit of a map: the "
    "squared gradient of that unit, mean over images, channels and draws of weights (Luo et al., "
    "section 3.1). Size: the root of the number of pixels above 4.55 % of the peak; sigma: the "
    "standard deviation of the map as a distribution."
)
LIMIT = (
    "Three 3x3 and one 7x7 are compared untrained: training can give a 7x7 any field. The image "
    "bounds the networks' fields."
)
STUDY = Study(
    name="receptive_field",
    lecture="VGG: three stacked 3x3 convolutions have the same effective receptive field "
    "as one 7x7",
    title="What does a unit see, on paper and in effect?",
    question=(
        "A stack of three 3x3 convolutions can see the same 7x7 pixels as one large filter. Does "
        "it see them as well?"
    ),
    presets=PRESETS,
    arms=make_arms,
    measure=measure,
    judge=judge,
    draw=draw,
    method=lambda results: [METHOD],
    limits=lambda results: [LIMIT],
)

if __name__ == "__main__":
    run_command(lambda: run_study(STUDY, parse(Options)))
