"""What do shortcuts do to the signal of a network?

He et al. 2015; Veit et al. 2016 (arXiv:1605.06431); Brock et al. 2021 (arXiv:2101.08692).

python experiments/residual_signal.py           # digits: about three minutes on two CPU cores
python experiments/residual_signal.py --dataset fashion_mnist
"""

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array

from deepjax.analysis import lesions, path_lengths, signal_propagation, trace
from deepjax.analysis.network.module import Batch, init_variables
from deepjax.command_line import parse, run_command
from deepjax.models.preact import PreActResNet
from deepjax.study.arms import Arm
from deepjax.study.report.html import Figure
from deepjax.study.report.plots import profile_figure
from deepjax.study.runner import run_study
from deepjax.study.stats.claims import Claim, judge_claims
from deepjax.study.stats.rules import all_above, all_below, all_within, interval_rule
from deepjax.study.stats.verdict import NOT_SUPPORTED, Outcome, Verdict
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


def tower(blocks: int, normed: bool, width: int = 16) -> PreActResNet:
    """One stage of pre-activated residual blocks of equal shape, with batch norm or no norm."""
    norm = "batch" if normed else "none"
    shape: dict[str, Any] = {"width": width, "stem_width": width, "num_classes": 10}
    return PreActResNet(stages=(blocks,), block="basic", stem="cifar", norm=norm, **shape)


def signal_growth(model: PreActResNet, key: Array, inputs: Array, draws: int = 4) -> dict[str, Any]:
    """Mean square of each block's output at initialisation, and how it grows.

    Returns "signal" by block, the geometric mean over draws of the weights; and for each draw the
    "factor" per block and the "exponent" of depth from block 4 on.
    """
    squares = []
    for each in jax.random.split(key, draws):
        blocks = signal_propagation(model, init_variables(model, each, inputs.shape), inputs).blocks
        squares.append([block.variance + block.squared_mean for block in blocks])
    depth, logs = np.arange(1, len(squares[0]) + 1), np.log(squares).T
    factors = np.exp(np.polyfit(depth, logs, 1)[0])
    exponents = np.polyfit(np.log(depth[3:]), logs[3:], 1)[0]
    found = {"signal": np.exp(logs.mean(1)), "factor": factors, "exponent": exponents}
    return {name: values.tolist() for name, values in found.items()}


def block_names(model: Any) -> list[str]:
    """Paths of the blocks of an unrolled `ResNet`, in the order of the forward pass."""
    stages = enumerate(model.stages, 1)
    return [f"stage{stage}_block{i}" for stage, count in stages for i in range(1, count + 1)]


def lesion_rises(model: Any, variables: Mapping[str, Any], batch: Batch) -> list[float]:
    """Rise of the error in points when a block is replaced by the identity, by block.

    Only blocks that keep their input's shape. For a residual block this deletes its branch, since
    its input has been through a ReLU.
    """
    first = {"stage2_block1", "stage3_block1"}
    keeping = [name for name in block_names(model) if name not in first]
    found = lesions(model, variables, batch, layers=keeping)
    return [100 * lesion.error_change for lesion in found.blocks]


def responses(model: Any, variables: Mapping[str, Any], batch: Batch) -> list[float]:
    """Standard deviation of each 3x3 layer's output after batch norm (He et al. 2015, Figure 7)."""
    layers = ["stem_norm", *(f"{block}/norm{i}" for block in block_names(model) for i in (1, 2))]
    return [row.std for row in trace(model, variables, batch, layers=layers).layers]


def gradient_paths(
    model: Any, variables: Mapping[str, Any], batch: Batch, samples: int, seed: int
) -> dict[str, Any]:
    """The gradient's fraction by path length, and its mean length over that of all paths."""
    found = path_lengths(model, variables, batch, samples=samples, key=jax.random.key(seed))
    return {
        "share": [row.fraction for row in found.lengths],
        "ratio": found.mean_length / (len(found.sums) / 2),
    }


# Rules, fixed before the runs. Each claim's control is the same rule where it must fail: with norm
# instead of without, and vice versa; the plain network instead of the residual one, and vice versa;
# an untrained network without norm, whose branches and shortcuts have equal gradients, so that all
# paths count alike; responses before training, which batch norm makes equal.
NETWORKS = ("resnet56", "resnet20", "plain20")
RULES = {
    "doubles": interval_rule(
        "between 1.87 and 2.14, 2 to the power of 0.9 and 1.1",
        partial(all_within, low=1.87, high=2.14),
    ),
    "linear": interval_rule("between 0.5 and 1.25", partial(all_within, low=0.5, high=1.25)),
    "gentle": interval_rule("below 10 points", partial(all_below, bound=10.0)),
    "collapse": interval_rule("above 40 points", partial(all_above, bound=40.0)),
    "short": interval_rule("below 0.75", partial(all_below, bound=0.75)),
    "smaller": interval_rule(
        "below -0.05, where responses start at 1", partial(all_below, bound=-0.05)
    ),
}
REFUTED: tuple[Outcome] = ("refuted",)
# fmt: off
CLAIMS = (
    Claim("Without norm, the signal doubles with every residual block.",
          "factor", ("no norm",), "doubles"),
    Claim("With batch norm it grows about linearly with depth.",
          "exponent", ("batch norm",), "linear"),
    Claim("A residual network hardly suffers from the loss of a block.",
          "rise", ("resnet56",), "gentle"),
    Claim("A plain network collapses without a block.", "rise", ("plain20",), "collapse"),
    Claim("The gradient of a residual network comes mostly by short paths.",
          "ratio", ("resnet56",), "short"),
    Claim("The layers of a residual network respond less than a plain one's.",
          "response", ("resnet20", "plain20"), "smaller"),
    Claim("The layers of a deeper residual network respond less.",
          "response", ("resnet56", "resnet20"), "smaller"),
    Claim("With batch norm, the signal doubles with every block.",
          "factor", ("batch norm",), "doubles", REFUTED),
    Claim("Without norm it grows about linearly with depth.",
          "exponent", ("no norm",), "linear", REFUTED),
    Claim("A plain network hardly suffers from the loss of a block.",
          "rise", ("plain20",), "gentle", REFUTED),
    Claim("A residual network collapses without a block.",
          "rise", ("resnet56",), "collapse", REFUTED),
    Claim("As drawn without norm, the gradient comes mostly by short paths.",
          "ratio", ("drawn",), "short", REFUTED),
    Claim("As drawn, the residual one responds less.",
          "response", ("resnet20, drawn", "plain20, drawn"), "smaller", NOT_SUPPORTED),
)
# fmt: on
MEASURES = {
    "factor": (
        "Factor per block of the signal's mean square: 16 pre-activated blocks as drawn, "
        "Gaussian images of 64 x 64.",
        "",
    ),
    "exponent": ("Power of depth with which that mean square goes, from block 4 to 16.", ""),
    "rise": (
        "Rise of the test error when a block's input is passed on in its place: mean over blocks "
        "that keep shape.",
        " points",
    ),
    "ratio": (
        "Mean number of branches on a path, weighted by its gradient, over that of all paths "
        "(Veit et al. 2016).",
        "",
    ),
    "response": (
        "Deviation after batch norm, before sum and ReLU, mean over layers (He et al. 2015, "
        "Figure 7).",
        "",
    ),
}
SHORT = {"epochs": 1, "batch_size": 128, "width": 8, "warmup_epochs": 0.3, "image_size": 16}
PRESETS = {
    # One rate: in the degradation study 0.1 was the best of every network.
    "digits": Preset(
        "ResNet-110 loses a few points, VGG everything; gradient comes by 5 to 17 of 54 blocks "
        "(Veit et al. 2016, on CIFAR-10)",
        seeds=5,
        rates=(0.1,),
        training={"epochs": 12, "batch_size": 64, "width": 8, "warmup_epochs": 4.0},
        sizes={"tested": 360, "samples": 8},
    ),
    "fashion_mnist": Preset(
        "nothing: no source is known for so short a training",
        rates=(0.1,),
        training=SHORT,
        sizes={"tested": 2000, "samples": 16},
    ),
    "cifar10": Preset(
        "as on digits; responses smaller than of plain networks, and with depth (He et al. 2015, "
        "Figure 7); not measured here",
        training={"epochs": 164, **HE_2015_CIFAR},
        sizes={"tested": 10_000, "samples": 64},
    ),
}


def make_arms(options: Options, preset: Preset) -> dict[str, Arm]:
    """A deep and a shallow residual network, and a plain one."""
    return {name: make_arm(name, f"cifar_{name}", options, preset) for name in NETWORKS}


def measure(context: SeedContext) -> dict[str, Any]:
    """Signal as drawn, on Gaussian inputs; lesions, responses and paths of what was trained."""
    seed, sizes, key = context.seed, context.preset.sizes, jax.random.key(context.seed)
    samples, noise = sizes["samples"], jax.random.normal(key, (8, 64, 64, 3))
    towers = {"no norm": tower(16, False, width=32), "batch norm": tower(16, True, width=32)}
    signals = {name: signal_growth(model, key, noise) for name, model in towers.items()}
    bare, small = tower(27, normed=False), (noise[:4, :16, :16], np.arange(4))
    drawn = init_variables(bare, key, small[0].shape)
    paths = {"drawn": gradient_paths(bare, drawn, small, samples, seed)}
    rises, stds = {}, {}
    for name, path in context.runs.items():
        trained = open_run(path, data_dir=context.data_dir)
        model, variables, batch = trained.model, trained.variables, trained.batch(64, seed=seed)
        rises[name] = lesion_rises(model, variables, trained.batch(sizes["tested"], "test"))
        fresh = init_variables(model, key, batch["image"].shape)
        stds[name] = responses(model, variables, batch)
        stds[f"{name}, drawn"] = responses(model, fresh, batch)
        if name == "resnet56":
            paths[name] = gradient_paths(model, variables, batch, samples, seed)
    found: dict[str, Any] = {"rise": rises, "response": stds}
    for kinds, by_name in (
        (("signal", "factor", "exponent"), signals),
        (("ratio", "share"), paths),
    ):
        for kind in kinds:
            found[kind] = {name: values[kind] for name, values in by_name.items()}
    return found


def judge(results: StudyResults) -> list[Verdict]:
    """The signal's growth, lesions, paths and responses; then their controls."""
    return judge_claims(CLAIMS, RULES, MEASURES, results.measured)


def draw(results: StudyResults, out: Path) -> list[Figure]:
    """Signal, lesions, paths and responses by depth; each title states the finding."""
    mean = {
        kind: {name: np.mean(results.values(kind, name)) for name in results.measured[0][kind]}
        for kind in MEASURES
    }
    signal = {name: results.values("signal", name) for name in ("no norm", "batch norm")}
    rise, response = (
        {name: results.values(kind, name) for name in NETWORKS} for kind in ("rise", "response")
    )
    share = {
        "gradient": results.values("share", "resnet56"),
        "paths": [[math.comb(27, k) / 2**27 for k in range(28)]],
    }
    grown = f"Without norm each block multiplies the signal by {mean['factor']['no norm']:.2f}"
    deep, shallow = mean["rise"]["resnet56"], mean["rise"]["plain20"]
    worst = np.mean(rise["resnet56"], axis=0).max()
    lost = (
        f"Without a block plain-20 loses {shallow:.0f} points,\nresidual-56 {deep:.1f}, and "
        f"{worst:.0f} at worst"
    )
    short = (
        f"Residual-56: paths of the gradient are\n{mean['ratio']['resnet56']:.2f} as long as the "
        "mean path"
    )
    means = ", ".join(f"{name} {mean['response'][name]:.2f}" for name in NETWORKS)
    smaller = f"Mean response: {means}"
    return [
        profile_figure(out / "signal.png", grown, ("block", "mean square"), signal, y_scale="log"),
        profile_figure(
            out / "lesions.png", lost, ("block left out", "rise of the test error (points)"), rise
        ),
        profile_figure(out / "paths.png", short, ("branches on the path", "share"), share, start=0),
        profile_figure(
            out / "responses.png", smaller, ("layer", "deviation after batch norm"), response
        ),
    ]


STUDY = Study(
    name="residual_signal",
    lecture="ResNet: the residual mapping is easier to optimise",
    title="What do shortcuts do to the signal of a network?",
    question=(
        "A residual block adds to its input. What follows for the signal, for the loss of a "
        "block, for the gradient?"
    ),
    presets=PRESETS,
    arms=make_arms,
    measure=measure,
    judge=judge,
    draw=draw,
    method=lambda results: [
        "To leave out a block is to pass on its input; the two blocks that change the map's shape "
        "stay."
    ],
    limits=lambda results: [
        "Plain-56 does not learn and is not lesioned. The mean over blocks hides the first, which "
        "matter."
    ],
)

if __name__ == "__main__":
    run_command(lambda: run_study(STUDY, parse(Options)))
