"""Do the gradients of deep networks shatter into noise, and do shortcuts prevent it? (Balduzzi et al. 2017, arXiv:1702.08591)

python experiments/shattered_gradients.py     # digits: two minutes, nothing is trained; or --dataset fashion_mnist
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array

from deepjax.analysis import init_variables, shattering
from deepjax.analysis.plots import COLORS, Curve
from deepjax.command_line import parse, run
from deepjax.data import dataset_info, sample
from deepjax.models import create_model
from deepjax.models.resnet import cifar_stages
from deepjax.study.report.html import Figure
from deepjax.study.report.plots import lines_figure
from deepjax.study.stats.measured import difference
from deepjax.study.stats.scaling_laws import curve, exponential, power
from deepjax.study.stats.verdict import Verdict, all_above
from deepjax.study.study import Options, Preset, SeedContext, Study, StudyResults, run_study
from deepjax.study.wide import WideNet

# The rules, fixed before the runs. A law of c^L must be met to 10 % of its slope, log c, over the first blocks: that tells 1/2
# from 3/4. With batch norm residual networks have a power of about -1/2 of the depth in theory. Controls that must fail these laws:
# residual branches of a tenth, and a plain network that looks linear.
SHORT, LONG, LAYERS = (1, 2, 3, 4, 6), (4, 12, 24, 48), (8, 20, 56)
WIDE: dict[
    str, tuple[dict[str, Any], tuple[int, ...]]
] = {  # with the blocks at which it is looked at
    "plain, batch norm": ({}, SHORT),
    "plain, no norm": ({"norm": False}, SHORT),
    "residual, no norm": ({"residual": True, "norm": False}, SHORT),
    "plain, looks linear": ({"norm": False, "looks_linear": True}, SHORT),
    "residual, tenth": ({"residual": True, "beta": 0.1}, (*SHORT, *LONG[1:])),
    "residual, batch norm": ({"residual": True}, LONG),
}
HALF, THREE_QUARTERS, ROOT = (0.5**1.1, 0.5**0.9), (0.75**1.1, 0.75**0.9), (-0.75, -0.4)
MEASURE = "Mean cosine between gradients of the output at all pairs of inputs, at initialization; Student's interval over the seeds."
RULE = "Supported if the interval of the slope of log cosine by {} lies in {:.3f} to {:.3f}; refuted if outside; else inconclusive."
ALIKE = "Supported if the interval of the difference, paired by seed, lies above 0; refuted if below; else inconclusive."
EXPECTED = "plain with batch norm 1/2^L, residual without (3/4)^L, residual with it about L^-1/2 (Balduzzi et al. 2017, section 3)"
PRESETS = {
    "digits": Preset(
        f"{EXPECTED}; a prototype of width 512 fell slower without norm",
        5,
        sizes={"width": 1024, "examples": 128},
    ),
    "fashion_mnist": Preset(
        f"{EXPECTED}; the theory does not know the data", 5, sizes={"width": 2048, "examples": 256}
    ),
    "cifar10": Preset(f"{EXPECTED}; not measured here", 10, sizes={"width": 4096, "examples": 512}),
}


def measure(subject: SeedContext) -> dict[str, Any]:
    """The mean cosine by network and depth: of wide networks on Gaussian inputs, of convolutional ones on the data set's images."""
    sizes, key = subject.preset.sizes, jax.random.key(subject.seed)
    images = sample(
        dataset_info(subject.dataset), sizes["examples"], subject.seed, data_dir=subject.data_dir
    )["image"]
    noise = jax.random.normal(key, (sizes["examples"], sizes["width"]))
    found: dict[str, Any] = {}
    for name, (fields, depths) in WIDE.items():
        found[name] = {str(depth): alike(WideNet(depth, **fields), key, noise) for depth in depths}
        subject.progress(len(found), len(WIDE) + 2)
    for kind in ("plain", "resnet"):
        networks = {
            depth: create_model(f"cifar_{kind}20", stages=cifar_stages(depth), scan=True)
            for depth in LAYERS
        }
        found[kind] = {str(depth): alike(model, key, images) for depth, model in networks.items()}
        subject.progress(len(found), len(WIDE) + 2)
    return found


def alike(model: Any, key: Array, inputs: Array) -> float:
    """The mean cosine of a network as it is drawn."""
    return shattering(model, init_variables(model, key, inputs.shape), inputs).cosine


def by_depth(evidence: StudyResults, network: str, depths: Sequence[int]) -> dict[int, list[float]]:
    """By depth, seed by seed."""
    return {depth: evidence.values(network, str(depth)) for depth in depths}


def judge(evidence: StudyResults) -> list[Verdict]:
    """Four laws and one comparison; three controls by the same rules."""

    def rate(claim: str, network: str, law: tuple[float, float], **more: Any) -> Verdict:
        rule = RULE.format("depth", *np.log(law))
        return exponential(
            f"Gradients of {claim}.", MEASURE, rule, by_depth(evidence, network, SHORT), law, **more
        )

    def root(claim: str, network: str, **more: Any) -> Verdict:
        rule = RULE.format("log depth", *ROOT)
        return power(
            f"Gradients of {claim}.", MEASURE, rule, by_depth(evidence, network, LONG), ROOT, **more
        )

    alike = {kind: evidence.values(kind, "56") for kind in ("resnet", "plain")}
    images = f"At 56 layers gradients at images of {evidence.options.dataset} are more alike in a residual than in a plain network."
    return [
        rate("a plain network with batch norm shatter as 1/2^L", "plain, batch norm", HALF),
        rate("a plain network without norm shatter as 1/2^L", "plain, no norm", HALF),
        rate(
            "a residual network without norm shatter as (3/4)^L",
            "residual, no norm",
            THREE_QUARTERS,
        ),
        root(
            "a residual network with batch norm shatter as about 1/sqrt(L) only",
            "residual, batch norm",
        ),
        difference(images, MEASURE, ALIKE, partial(all_above, bound=0.0), alike),
        rate(
            "a residual network with branches of a tenth shatter as 1/2^L",
            "residual, tenth",
            HALF,
            control=("refuted",),
        ),
        rate(
            "a plain network that looks linear shatter as 1/2^L",
            "plain, looks linear",
            HALF,
            control=("refuted",),
        ),
        root(
            "a residual network with branches of a tenth shatter as about 1/sqrt(L)",
            "residual, tenth",
            control=("refuted",),
        ),
    ]


def draw(evidence: StudyResults, out: Path) -> list[Figure]:
    """The exponential laws, the powers, and the registry's networks."""

    def curves(names: Sequence[str], depths: Sequence[int]) -> list[Curve]:
        return [
            curve(name, by_depth(evidence, name, depths), color)
            for name, color in zip(names, COLORS, strict=False)
        ]

    verdicts = judge(evidence)
    laws = [
        curve(f"{base:g}^L", {depth: [base**depth] for depth in SHORT}, "0.6", ":")
        for base in (0.5, 0.75)
    ]
    half, exponent = (
        np.exp(verdicts[0].effects["slope"].effect),
        verdicts[3].effects["slope"].effect,
    )
    residual, plain = (np.mean(values) for values in verdicts[4].values.values())
    first = (
        f"Plain, batch norm: each block\nmultiplies the cosine by {half:.2f}",
        [*curves(list(WIDE)[:5], SHORT), *laws],
    )
    second = (
        f"Residual, batch norm: the cosine\ngoes as depth to the power {exponent:.2f}",
        curves(list(WIDE)[5:3:-1], LONG),
    )
    third = (
        f"At images, 56 layers: residual {residual:.2g}, plain {plain:.2g}",
        curves(("resnet", "plain"), LAYERS),
    )
    label, log, band = (
        "mean cosine between gradients",
        "log",
        " Mean over seeds, band from the least to the greatest.",
    )
    return [
        Figure(
            lines_figure([first], out / "exponential.png", "blocks", label, y_scale=log),
            f"Wide networks.{band}",
        ),
        Figure(
            lines_figure([second], out / "power.png", "blocks", label, log, log),
            f"Wide residual networks by depth.{band}",
        ),
        Figure(
            lines_figure([third], out / "images.png", "layers", label),
            f"Convolutional networks of the registry.{band}",
        ),
    ]


METHOD = [
    "Near a point the network is linear, and the gradient by its input is what it does there. If gradients at different inputs are "
    "as unlike as noise, a step that is right for one says nothing about another, however healthy the norms (Balduzzi et al.).",
    "Wide networks: a linear layer, L blocks of norm, ReLU and a linear layer of He's weights, one output; Gaussian inputs. In the "
    "backward pass batch norm is a fixed scale and shift, as in the theory. The convolutional ones are the registry's, as drawn.",
]
STUDY = Study(
    name="shattered_gradients",
    lecture="ResNet: the residual mapping lets the gradient reach the low layers",
    title="Do gradients shatter with depth, and do shortcuts prevent it?",
    question="Gradients of deep networks with batch norm do not vanish. But do they still agree from one input to the next?",
    presets=PRESETS,
    measure=measure,
    judge=judge,
    draw=draw,
    method=lambda evidence: METHOD,
    limits=lambda evidence: [
        "At initialization only. Theory takes units as active independently; without norm inputs grow alike."
    ],
)

if __name__ == "__main__":
    run(lambda: run_study(STUDY, parse(Options)))
