"""Do the gradients of deep networks shatter into noise, and do shortcuts prevent it?

Balduzzi et al. 2017 (arXiv:1702.08591).

python experiments/shattered_gradients.py       # digits: two minutes, nothing is trained
python experiments/shattered_gradients.py --dataset fashion_mnist
"""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from deepjax.analysis import init_variables, shattering
from deepjax.analysis.plots import COLORS, Curve
from deepjax.command_line import parse, run_command
from deepjax.data import dataset_info, sample
from deepjax.models import create_model
from deepjax.models.layers.initializers import he_normal
from deepjax.models.layers.norms import norm_factory
from deepjax.models.resnet import cifar_stages
from deepjax.study.report.html import Figure
from deepjax.study.report.plots import lines_figure
from deepjax.study.runner import run_study
from deepjax.study.stats.claims import difference_verdict
from deepjax.study.stats.rules import Rule, all_above
from deepjax.study.stats.scaling_laws import Points, exponential_law, power_law
from deepjax.study.stats.verdict import Verdict
from deepjax.study.study import Options, Preset, SeedContext, Study, StudyResults


def looks_linear_init(key: Array, shape: tuple[int, int], dtype: DTypeLike = jnp.float32) -> Array:
    """A Gaussian matrix above its negative: a linear map of x from [relu(x), relu(-x)].

    shape: (2 n, out). Balduzzi et al. 2017, section 4, "looks linear", with an orthogonal matrix.
    """
    half = he_normal(key, (shape[0] // 2, shape[1]), dtype) / math.sqrt(2)
    return jnp.concatenate([half, -half])


class WideBlock(nn.Module):
    """Norm, ReLU, linear; a residual block adds `beta` times that to its input.

    `looks_linear`: relu(x) and relu(-x) into a kernel of `looks_linear_init`.
    """

    residual: bool
    norm: bool
    beta: float
    looks_linear: bool
    train: bool

    @nn.compact
    def __call__(self, x: Array, _: None = None) -> tuple[Array, None]:
        norm = norm_factory(
            "batch" if self.norm else "none", self.train, "global", jnp.float32, jnp.float32
        )
        y = norm(name="norm")(x)
        y = nn.relu(jnp.concatenate([y, -y], axis=-1) if self.looks_linear else y)
        kernel = looks_linear_init if self.looks_linear else he_normal
        y = nn.Dense(x.shape[-1], use_bias=False, kernel_init=kernel, name="dense")(y)
        return (x + self.beta * y if self.residual else y), None


class WideNet(nn.Module):
    """A linear layer, `depth` blocks as wide as the input, one output: (n, width) -> (n, 1).

    Balduzzi et al. 2017, section 3. The blocks are scanned, so any depth compiles as fast as one.
    """

    depth: int
    residual: bool = False
    norm: bool = True
    beta: float = 1.0
    looks_linear: bool = False

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        x = nn.Dense(x.shape[-1], use_bias=False, name="first")(x)
        options = {"variable_axes": {"params": 0, "batch_stats": 0}, "split_rngs": {"params": True}}
        block = nn.scan(WideBlock, length=self.depth, **options)
        x, _ = block(self.residual, self.norm, self.beta, self.looks_linear, train, name="blocks")(
            x, None
        )
        return nn.Dense(1, use_bias=False, name="last")(x)


# Rules, fixed before the runs. The slope of a law c^L, log c, must be met within 10 % over the
# first blocks, which separates 1/2 from 3/4. In theory residual networks with batch norm have a
# power of depth of about -1/2. Controls that must fail these laws: residual branches of a tenth,
# and a plain network that looks linear.
SHORT, LONG, LAYERS = (1, 2, 3, 4, 6), (4, 12, 24, 48), (8, 20, 56)
# Fields of `WideNet`, and the depths that are measured.
WIDE: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "plain, batch norm": ({}, SHORT),
    "plain, no norm": ({"norm": False}, SHORT),
    "residual, no norm": ({"residual": True, "norm": False}, SHORT),
    "plain, looks linear": ({"norm": False, "looks_linear": True}, SHORT),
    "residual, tenth": ({"residual": True, "beta": 0.1}, (*SHORT, *LONG[1:])),
    "residual, batch norm": ({"residual": True}, LONG),
}
HALF, THREE_QUARTERS, ROOT = (0.5**1.1, 0.5**0.9), (0.75**1.1, 0.75**0.9), (-0.75, -0.4)
MEASURE = (
    "Mean cosine between gradients of the output at all pairs of inputs, at initialization; "
    "Student's interval over the seeds."
)
RULE = (
    "Supported if the interval of the slope of log cosine by {} lies in {:.3f} to {:.3f}; refuted "
    "if outside; else inconclusive."
)
ALIKE = Rule(
    "Supported if the interval of the difference, paired by seed, lies above 0; refuted if "
    "below; else inconclusive.",
    partial(all_above, bound=0.0),
)
EXPECTED = (
    "plain with batch norm 1/2^L, residual without (3/4)^L, residual with it about L^-1/2 "
    "(Balduzzi et al. 2017, section 3)"
)
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


def measure(context: SeedContext) -> dict[str, Any]:
    """Mean cosine by network and depth.

    Wide networks on Gaussian inputs, convolutional ones on the data set's images.
    """
    sizes, key = context.preset.sizes, jax.random.key(context.seed)
    images = sample(
        dataset_info(context.dataset), sizes["examples"], context.seed, data_dir=context.data_dir
    )["image"]
    noise = jax.random.normal(key, (sizes["examples"], sizes["width"]))
    found: dict[str, Any] = {}
    for name, (fields, depths) in WIDE.items():
        found[name] = {str(depth): alike(WideNet(depth, **fields), key, noise) for depth in depths}
        context.progress(len(found), len(WIDE) + 2)
    for kind in ("plain", "resnet"):
        networks = {
            depth: create_model(f"cifar_{kind}20", stages=cifar_stages(depth), scan=True)
            for depth in LAYERS
        }
        found[kind] = {str(depth): alike(model, key, images) for depth, model in networks.items()}
        context.progress(len(found), len(WIDE) + 2)
    return found


def alike(model: Any, key: Array, inputs: Array) -> float:
    """The mean cosine of a network at initialisation."""
    return shattering(model, init_variables(model, key, inputs.shape), inputs).cosine


def curve(label: str, points: Points, color: str, line: str = "-") -> Curve:
    """Values by depth and seed as a line of a figure."""
    return Curve(label, list(points), list(zip(*points.values(), strict=True)), color, line)


def by_depth(results: StudyResults, network: str, depths: Sequence[int]) -> dict[int, list[float]]:
    """By depth, seed by seed."""
    return {depth: results.values(network, str(depth)) for depth in depths}


def judge(results: StudyResults) -> list[Verdict]:
    """Four laws and one comparison; three controls by the same rules."""

    def rate(claim: str, network: str, law: tuple[float, float], **more: Any) -> Verdict:
        rule = RULE.format("depth", *np.log(law))
        return exponential_law(
            f"Gradients of {claim}.", MEASURE, rule, by_depth(results, network, SHORT), law, **more
        )

    def root(claim: str, network: str, **more: Any) -> Verdict:
        rule = RULE.format("log depth", *ROOT)
        return power_law(
            f"Gradients of {claim}.", MEASURE, rule, by_depth(results, network, LONG), ROOT, **more
        )

    alike = {kind: results.values(kind, "56") for kind in ("resnet", "plain")}
    images = (
        f"At 56 layers gradients at images of {results.options.dataset} are more alike in a "
        "residual than in a plain network."
    )
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
        difference_verdict(images, MEASURE, ALIKE, alike),
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


def draw(results: StudyResults, out: Path) -> list[Figure]:
    """The exponential laws, the powers, and the registry's networks."""

    def curves(names: Sequence[str], depths: Sequence[int]) -> list[Curve]:
        colors = zip(names, COLORS, strict=False)
        return [curve(name, by_depth(results, name, depths), color) for name, color in colors]

    powers = {base: {depth: [base**depth] for depth in SHORT} for base in (0.5, 0.75)}
    laws = [curve(f"{base:g}^L", points, "0.6", ":") for base, points in powers.items()]
    half = np.exp(results.verdicts[0].effects["slope"].effect)
    exponent = results.verdicts[3].effects["slope"].effect
    residual, plain = (np.mean(values) for values in results.verdicts[4].values.values())
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
    label, log = "mean cosine between gradients", "log"
    files = [
        lines_figure([first], out / "exponential.png", "blocks", label, y_scale=log),
        lines_figure([second], out / "power.png", "blocks", label, log, log),
        lines_figure([third], out / "images.png", "layers", label),
    ]
    captions = (
        "Wide networks.",
        "Wide residual networks by depth.",
        "Convolutional networks of the registry.",
    )
    band = " Mean over seeds, band from the least to the greatest."
    return [Figure(path, caption + band) for path, caption in zip(files, captions, strict=True)]


METHOD = [
    "Near a point the network is linear, and the gradient by its input is what it does there. If "
    "gradients at different inputs are as unlike as noise, a step that is right for one says "
    "nothing about another, however healthy the norms (Balduzzi et al.).",
    "Wide networks: a linear layer, L blocks of norm, ReLU and a linear layer of He's weights, "
    "one output; Gaussian inputs. In the backward pass batch norm is a fixed scale and shift, as "
    "in the theory. The convolutional ones are the registry's, as drawn.",
]
STUDY = Study(
    name="shattered_gradients",
    lecture="ResNet: the residual mapping lets the gradient reach the low layers",
    title="Do gradients shatter with depth, and do shortcuts prevent it?",
    question=(
        "Gradients of deep networks with batch norm do not vanish. But do they still agree from "
        "one input to the next?"
    ),
    presets=PRESETS,
    measure=measure,
    judge=judge,
    draw=draw,
    method=lambda results: METHOD,
    limits=lambda results: [
        "At initialization only. Theory takes units as active independently; without norm inputs "
        "grow alike."
    ],
)

if __name__ == "__main__":
    run_command(lambda: run_study(STUDY, parse(Options)))
