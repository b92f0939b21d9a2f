"""Do the gradients of deep networks shatter into noise, and do shortcuts prevent it?

Balduzzi et al. 2017 (arXiv:1702.08591).

python experiments/shattered_gradients.py                  # a minute on two cores, no verdicts
python experiments/shattered_gradients.py --preset small   # three minutes; nothing is trained
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from deepjax.analysis import init_variables, shattering
from deepjax.command_line import parse, run_command
from deepjax.data import dataset_info, sample
from deepjax.models import cifar_stages, create_model
from deepjax.models.layers.initializers import he_normal
from deepjax.models.layers.norms import norm_factory
from deepjax.study.claim import CHANGED, SAME_LEVEL, Claim, Control
from deepjax.study.preset import Preset
from deepjax.study.quantity import Quantity, log, measured, slope
from deepjax.study.report.study_figures import value_lines, value_rows
from deepjax.study.runner import run_study
from deepjax.study.stats.rules import above, within
from deepjax.study.study import Options, SeedContext, Study

# Blocks of the wide networks, layers of the convolutional ones; deeper plain ones shatter too far.
SHORT, LONG, LAYERS = (1, 2, 4, 6), (4, 12, 24, 48), (8, 20)
WIDTHS = (256, 1024)

# Networks.


class WideBlock(nn.Module):
    """Norm, ReLU, linear; a residual block adds `beta` times that to its input."""

    residual: bool
    norm: bool
    beta: float
    train: bool

    @nn.compact
    def __call__(self, x: Array, linear: Array) -> tuple[Array, None]:
        norm = norm_factory(
            "batch" if self.norm else "none", self.train, "global", jnp.float32, jnp.float32
        )
        y = norm(name="norm")(x)
        y = jnp.where(linear, y, nn.relu(y))
        y = nn.Dense(x.shape[-1], use_bias=False, kernel_init=he_normal, name="dense")(y)
        return (x + self.beta * y if self.residual else y), None


class WideNet(nn.Module):
    """A linear layer, `depth` blocks as wide as the input, one output: (n, width) -> (n, 1).

    Balduzzi et al. 2017, section 3. The blocks are scanned, so any depth compiles as fast as one.
    `linear_blocks`: the first blocks have no ReLU, as a planted defect.
    """

    depth: int
    residual: bool = False
    norm: bool = True
    beta: float = 1.0
    linear_blocks: int = 0

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        x = nn.Dense(x.shape[-1], use_bias=False, name="first")(x)
        options = {"variable_axes": {"params": 0, "batch_stats": 0}, "split_rngs": {"params": True}}
        block = nn.scan(WideBlock, length=self.depth, **options)
        linear = jnp.arange(self.depth) < self.linear_blocks
        x, _ = block(self.residual, self.norm, self.beta, train, name="blocks")(x, linear)
        return nn.Dense(1, use_bias=False, name="last")(x)


# By name: fields of `WideNet`, width, and the depths that are measured.
WIDE: dict[str, tuple[dict[str, Any], int, tuple[int, ...]]] = {
    "plain, batch norm": ({}, WIDTHS[-1], SHORT),
    "plain, no norm": ({"norm": False}, WIDTHS[-1], SHORT),
    "residual, no norm": ({"residual": True, "norm": False}, WIDTHS[-1], SHORT),
    "one ReLU missing": ({"linear_blocks": 1}, WIDTHS[-1], SHORT[-1:]),
    "branches of a tenth": ({"residual": True, "beta": 0.1}, WIDTHS[-1], LONG[-1:]),
    **{f"residual, width {width}": ({"residual": True}, width, LONG) for width in WIDTHS},
}
IMAGES = {"residual": ("resnet", 0), "plain": ("plain", 0), "residual, again": ("resnet", 1)}

# Measurements.


def mean_cosine(model: nn.Module, inputs: Array, key: Array) -> float:
    """Mean cosine between the gradients at all pairs of inputs, of a network at initialisation."""
    return shattering(model, init_variables(model, key, inputs.shape), inputs).cosine


def wide_cosine(name: str, depth: int, examples: int, keys: Array) -> float:
    """The mean over samples of the weights and of Gaussian inputs of a network of `WIDE`."""
    fields, width, _ = WIDE[name]
    found = []
    for weights_key, inputs_key in map(jax.random.split, keys):
        noise = jax.random.normal(inputs_key, (examples, width))
        found.append(mean_cosine(WideNet(depth, **fields), noise, weights_key))
    return float(np.mean(found))


def image_cosine(kind: str, depth: int, images: Array, keys: Array) -> float:
    """The mean over samples of the weights of a convolutional network at images."""
    model = create_model(f"cifar_{kind}20", stages=cifar_stages(depth), scan=True)
    return float(np.mean([mean_cosine(model, images, key) for key in keys]))


def measure(context: SeedContext) -> dict[str, Any]:
    """Mean cosine by network and depth: wide ones at Gaussian noise, convolutional ones at images.

    "residual, again" has other weights than "residual".
    """
    examples, samples = context.preset.sizes["examples"], context.preset.sizes["samples"]
    key, info = jax.random.key(context.seed), dataset_info(context.dataset)
    found: dict[str, Any] = {"images": {}}
    keys = jax.random.split(key, samples)
    for i, (name, (_, _, depths)) in enumerate(WIDE.items()):
        found[name] = {str(depth): wide_cosine(name, depth, examples, keys) for depth in depths}
        context.progress(i + 1, len(WIDE) + 1)
    images = sample(info, examples, context.seed, data_dir=context.data_dir)["image"]
    for name, (kind, stream) in IMAGES.items():
        keys = jax.random.split(jax.random.fold_in(key, stream), 2 * samples)
        found["images"][name] = {
            str(depth): image_cosine(kind, depth, images, keys) for depth in LAYERS
        }
    return found


# Theory.


def independent_gates(depth: int, growth: float = 1.0) -> float:
    """The cosine that theory predicts for a residual network with batch norm.

    A ReLU lets half of the gradient's variance pass, and a quarter at both of two inputs at which
    it is active independently; He's weights double both. So block l, which divides its branch by
    the standard deviation of its input, multiplies the variance of the gradient by 1 + a and its
    covariance by 1 + a / 2, where a = 1 / (1 + growth l). growth: variance that a branch adds to
    the sum, 1 in Balduzzi et al. 2017, section 3.
    """
    a = 1 / (1 + growth * np.arange(depth))
    return float(np.prod((1 + a / 2) / (1 + a)))


def exponent(cosines: Sequence[float]) -> float:
    """The least-squares slope of log cosine over log depth at the depths of LONG."""
    return float(np.polyfit(np.log(LONG), np.log(cosines), 1)[0])


# Batch norm subtracts the mean over the inputs. A ReLU of a standard normal has a mean square of
# 1/2 and a squared mean of 1 / (2 pi), so of a branch's variance of 1 a part of 1 / pi goes.
WITHOUT_MEAN = 1 - 1 / math.pi
PAPER = [independent_gates(depth) for depth in LONG]
CENTRED = [independent_gates(depth, WITHOUT_MEAN) for depth in LONG]

# Rules, fixed before the runs. A law c^L must be met within 10 % of its exponent, which separates
# 1/2 from 3/4; a power of depth within 0.1, which separates the two theories. The cosines of
# interest are half of the differences that an earlier version found at 8 and 20 layers.
MARGIN, COSINES = 0.1, {8: 0.03, 20: 0.01}
LAW = within(1 - MARGIN, 1 + MARGIN)
PREDICTED, PREDICTED_CENTRED = (
    within(round(exponent(theory) - MARGIN, 3), round(exponent(theory) + MARGIN, 3))
    for theory in (PAPER, CENTRED)
)


def rate(name: str, base: float) -> Quantity:
    """The slope of log cosine over blocks, in units of log base: 1 for the law base^L."""
    points = {float(depth): log(measured(name, str(depth))) for depth in SHORT}
    per_block = slope(points) * (1 / math.log(base))
    return per_block.named(f"{name}, exponent of {base:g} per block")


def power(name: str) -> Quantity:
    """The power of depth."""
    points = {math.log(depth): log(measured(name, str(depth))) for depth in LONG}
    return slope(points, f"{name}, exponent of depth")


def more_alike(other: str, depth: int) -> Quantity:
    """The mean cosine at images of the residual network less that of another."""
    one, two = (
        measured("images", name, str(depth), name=f"{name}, {depth} layers, cosine")
        for name in ("residual", other)
    )
    return one - two


ALIKE = "Before training, gradients of different images are more alike in residual than in plain"
POWERS = [power(f"residual, width {width}") for width in WIDTHS]
CLAIMS = (
    *(
        Claim(
            f"{ALIKE} networks of {depth} layers.",
            more_alike("plain", depth), above(0), interest=COSINES[depth], headline=depth == 20,
        )
        for depth in LAYERS[::-1]
    ),
    *(
        Claim(f"The gradients of a wide {text}.", rate(name, base), LAW, interest=MARGIN)
        for text, name, base in (
            ("plain network with batch norm shatter as 1/2^L", "plain, batch norm", 1 / 2),
            ("plain network without norm shatter as 1/2^L", "plain, no norm", 1 / 2),
            ("residual network without norm shatter as (3/4)^L", "residual, no norm", 3 / 4),
        )
    ),
    Claim(
        "The gradients of a wide residual network with batch norm shatter with an exponent of "
        f"{exponent(PAPER):.2f}, as the paper's theory predicts, 1/sqrt(L) in the limit.",
        POWERS, PREDICTED, interest=MARGIN, exploratory=CHANGED,
    ),
    Claim(
        f"They do so with an exponent of {exponent(CENTRED):.2f}, as theory predicts if the mean "
        "that batch norm subtracts is counted: gradients of a wide residual network with it.",
        POWERS, PREDICTED_CENTRED, interest=MARGIN, exploratory=CHANGED,
    ),
    Claim(
        "Branches scaled by a tenth keep gradients more alike than full ones, at 48 blocks.",
        measured("branches of a tenth", "48", name="cosine, branches of a tenth, 48 blocks")
        - measured(f"residual, width {WIDTHS[-1]}", "48", name="full branches"),
        above(0), interest=MARGIN,
    ),
    Control(
        "A/A: gradients at images are more alike in residual-20 than with other weights.",
        more_alike("residual, again", 20), above(0), expected=("inconclusive",), level=SAME_LEVEL,
    ),
    Control(
        "Planted defect: without one of its six ReLUs, a plain network with batch norm has "
        "gradients that are more alike.",
        log(measured("one ReLU missing", "6")) - log(measured("plain, batch norm", "6")),
        above(0), expected=("supported",), defect=True,
    ),
)  # fmt: skip
COSINE_AXIS = "mean cosine between gradients"
FIGURES = (
    value_rows(
        "images",
        "Likeness of gradients at images, in untrained networks. Mean cosine between the gradients "
        "at all pairs of images; seeds, mean and 95 % interval over seeds.",
        {
            f"{kind}, {depth} layers": ("images", kind, str(depth))
            for depth in LAYERS for kind in ("residual", "plain")
        },
        COSINE_AXIS,
        claim=f"{ALIKE} networks of 20",
    ),
    value_lines(
        "exponential",
        "Gradients of wide networks at Gaussian inputs. Dotted: 1/2^L and (3/4)^L.",
        {name: (name,) for name in list(WIDE)[:3]},
        ("blocks", COSINE_AXIS), SHORT, y_scale="log",
        reference={"1/2^L": [0.5**n for n in SHORT], "(3/4)^L": [0.75**n for n in SHORT]},
        claim="The gradients of a wide plain network with batch",
    ),
    value_lines(
        "power",
        "Gradients of wide residual networks with batch norm. Dotted: independent gates, above as "
        "in the paper, below with the mean subtracted by batch norm.",
        {name: (name,) for name in list(WIDE)[5:]},
        ("blocks", COSINE_AXIS), LONG, x_scale="log", y_scale="log",
        reference={"theory of the paper": PAPER, "mean counted": CENTRED},
        claim="The gradients of a wide residual network with batch norm",
    ),
)  # fmt: skip
STUDY = Study(
    name="shattered_gradients",
    title="Do gradients shatter with depth, and do shortcuts prevent it?",
    lecture="ResNet: the residual mapping lets the gradient reach the low layers",
    presets={
        "quick": Preset("fashion_mnist_small", 2, False, sizes={"examples": 64, "samples": 1}),
        "small": Preset("fashion_mnist_small", 6, sizes={"examples": 128, "samples": 4}),
    },
    measure=measure,
    claims=CLAIMS,
    figures=FIGURES,
    method=(
        "Near a point the network is linear, and the gradient with respect to the input is this "
        "linear map. If gradients at different inputs are as unlike as noise, a step that is right "
        "for one says nothing about another, however healthy the norms. Wide networks: a linear "
        "layer, L blocks of norm, ReLU and a linear layer with He's weights, one output. In the "
        "backward pass batch norm is a fixed scale and shift, as in the theory. Convolutional "
        "networks: those of He et al. 2015, section 4.2, and of 8 layers by their formula."
    ),
    limits=(
        "At initialisation only: not how gradients change in training, nor whether likeness of "
        "gradients is what makes a network trainable."
    ),
)

if __name__ == "__main__":
    run_command(lambda: run_study(STUDY, parse(Options)))
