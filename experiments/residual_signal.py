"""What do shortcuts do to the signal of a network?

He et al. 2015; Veit et al. 2016 (arXiv:1605.06431); Brock et al. 2021 (arXiv:2101.08692).

python experiments/residual_signal.py               # digits, a minute on two cores, no verdicts
python experiments/residual_signal.py --preset small --reuse-runs-from runs  # those of degradation
"""

import math
from typing import Any

import jax
import numpy as np
from jax import Array

from deepjax.analysis import init_variables, lesions, path_lengths, signal_propagation, trace
from deepjax.analysis.network.module import Batch
from deepjax.command_line import parse, run_command
from deepjax.models.preact import PreActResNet
from deepjax.study.arms.arm import Arm
from deepjax.study.claim import CHANGED, SAME_LEVEL, Claim, Control
from deepjax.study.ladder import LADDER, LADDER_GPU
from deepjax.study.preset import Preset
from deepjax.study.quantity import measured
from deepjax.study.report.study_figures import value_lines
from deepjax.study.runner import run_study
from deepjax.study.stats.rules import above, below, within
from deepjax.study.study import Options, SeedContext, Study
from deepjax.training import open_run

# Networks: arms of the degradation study, whose runs are reused; and untrained towers.
ARMS = {name: Arm(f"cifar_{name}") for name in ("resnet44", "resnet20", "plain20")}
SUMS = 21  # residual sums of residual-44
BLOCKS = 16  # of a tower


def tower(normed: bool, blocks: int = BLOCKS, width: int = 64) -> PreActResNet:
    """One stage of pre-activation residual blocks of equal shape, with batch norm or no norm."""
    norm = "batch" if normed else "none"
    return PreActResNet((blocks,), "basic", 10, width, width, "cifar", norm=norm)


# Measurements.


def mean_squares(
    model: PreActResNet, key: Array, images: Array, samples: int, gain: float = 1.0
) -> np.ndarray:
    """Mean square of each block's output at initialisation, (samples of the weights, blocks).

    gain: a factor on the last convolution of every branch.
    """

    def scaled(path: Any, leaf: Array) -> Array:
        return gain * leaf if "conv2" in jax.tree_util.keystr(path) else leaf

    found = []
    for each in jax.random.split(key, samples):
        variables = init_variables(model, each, images.shape)
        variables = jax.tree_util.tree_map_with_path(scaled, variables)
        blocks = signal_propagation(model, variables, images).blocks
        found.append([block.variance + block.squared_mean for block in blocks])
    return np.array(found)


def growth_factors(squares: np.ndarray) -> list[float]:
    """The factor of the mean square per block, by sample; squares: (samples, blocks)."""
    logs, blocks = np.log(squares), np.arange(squares.shape[1])
    return np.exp(np.polyfit(blocks, logs.T, 1)[0]).tolist()


def linear_fit(y: np.ndarray) -> dict[str, float]:
    """Least squares of y = intercept + slope x block, with blocks from 1, and its R2.

    "bend": the slope of the second half over that of the first, which is 1 for a straight line.
    """
    x, half = np.arange(1, len(y) + 1), len(y) // 2
    slope, intercept = np.polyfit(x, y, 1)
    bend = np.polyfit(x[half:], y[half:], 1)[0] / np.polyfit(x[:half], y[:half], 1)[0]
    found = {"slope": slope, "intercept": intercept, "bend": bend}
    found["r2"] = np.corrcoef(x, y)[0, 1] ** 2
    return {name: float(value) for name, value in found.items()}


def block_names(model: Any) -> list[str]:
    """Paths of the blocks of an unrolled `ResNet`, in the order of the forward pass."""
    stages = enumerate(model.stages, 1)
    return [f"stage{stage}_block{i}" for stage, count in stages for i in range(1, count + 1)]


def lesion_rises(model: Any, variables: Any, batch: Batch) -> tuple[list[float], float]:
    """Rise of the error in points without each block, and without all of them at once.

    Only blocks that keep their input's shape; their input replaces their output. For a residual
    block this deletes its branch, since its input has been through a ReLU.
    """
    first = {"stage2_block1", "stage3_block1"}
    keeping = [name for name in block_names(model) if name not in first]
    found = lesions(model, variables, batch, layers=keeping, removed=(len(keeping),))
    single = [100 * lesion.error_change for lesion in found.blocks]
    return single, 100 * found.several[0].error_change


def responses(model: Any, variables: Any, batch: Batch) -> list[float]:
    """Standard deviation of each 3x3 layer's output after batch norm (He et al. 2015, Figure 7)."""
    layers = ["stem_norm", *(f"{block}/norm{i}" for block in block_names(model) for i in (1, 2))]
    return [row.std for row in trace(model, variables, batch, layers=layers).layers]


def gradient_paths(
    model: Any, variables: Any, batch: Batch, samples: int, key: Array
) -> tuple[list[float], float]:
    """The gradient's fraction by path length; its mean length over that of all paths."""
    found = path_lengths(model, variables, batch, samples=samples, key=key)
    return [row.fraction for row in found.lengths], found.mean_length / (len(found.sums) / 2)


def measure_signal(key: Array, samples: int) -> dict[str, Any]:
    """Growth of the signal in untrained towers on Gaussian images."""
    images, key, other_key = jax.random.split(key, 3)
    noise, bare = jax.random.normal(images, (1, 32, 32, 3)), tower(normed=False)
    squares = {
        "no norm": mean_squares(bare, key, noise, samples),
        "other weights": mean_squares(bare, other_key, noise, samples),
        "halved branches": mean_squares(bare, key, noise, samples, gain=0.5),
    }
    normed = mean_squares(tower(normed=True), key, noise, samples).mean(0)
    typical = np.exp(np.log(squares["no norm"]).mean(0))
    return {
        "factor": {name: growth_factors(each) for name, each in squares.items()},
        "line": linear_fit(normed),
        "signal": {"no norm": typical.tolist(), "batch norm": normed.tolist()},
    }


def measure(context: SeedContext) -> dict[str, Any]:
    """The signal of untrained towers; lesions, responses and paths of trained networks."""
    seed, sizes, key = context.seed, context.preset.sizes, jax.random.key(context.seed)
    found: dict[str, Any] = {"rise": {}, "all blocks": {}, "response": {}, "ratio": {}}
    for i, (name, path) in enumerate(context.runs.items(), 1):
        run = open_run(path, data_dir=context.data_dir)
        tested, batch = run.batch(sizes["tested"], "test", seed), run.batch(64, seed=seed)
        network = run.model, run.variables
        found["rise"][name], found["all blocks"][name] = lesion_rises(*network, tested)
        found["response"][name] = responses(*network, batch)
        if name == "resnet44":
            paths = gradient_paths(*network, batch, sizes["paths"], key)
            found["fraction"], found["ratio"][name] = paths
        context.progress(i, len(context.runs) + 1)
    small, noise = tower(normed=False, blocks=12, width=16), jax.random.normal(key, (4, 16, 16, 3))
    untrained = small, init_variables(small, key, noise.shape)
    paths = gradient_paths(*untrained, (noise, np.arange(4)), sizes["paths"], key)
    found["ratio"]["untrained"] = paths[1]
    return found | measure_signal(key, sizes["samples"])


# Rules, fixed before the runs. Veit et al. 2016: a lesion costs ResNet-110 a few points, and VGG
# all that it has learnt; 90 % is the error of guessing. Theory at infinite width without padding:
# the mean square doubles without norm, and with batch norm a block adds 1; a tenth either way. All
# paths alike give a ratio of 1. Responses start at 1.
GENTLE, COLLAPSE, SHORT, SMALLER = below(5.0), above(40.0), below(0.75), -0.05
DOUBLES, DEEP = within(1.9, 2.1), ("resnet44",)
RISE = {"name": "rise of the test error", "unit": " points"}
FACTOR = {"name": "factor of the mean square per block"}
LENGTH = {"name": "mean length by gradient over that of all paths"}
CLAIMS = (
    Claim(
        "Without one block the test error of the residual network of 44 layers rises by less than "
        f"{GENTLE.high:g} points, on average over its blocks.",
        measured("rise", "resnet44", **RISE), GENTLE, interest=2.5, headline=True, measures=DEEP,
    ),
    Claim(
        "Without one block the test error of the plain network of 20 layers rises by more than "
        f"{COLLAPSE.low:g} points, on average over its blocks.",
        measured("rise", "plain20", **RISE), COLLAPSE, interest=10.0, headline=True,
        measures=("plain20",),
    ),
    Claim(
        "The gradient of a residual network comes by short paths: their mean length is below three "
        "quarters of that of all paths.",
        measured("ratio", "resnet44", **LENGTH), SHORT, interest=0.1, headline=True, measures=DEEP,
    ),
    # The width was 32 before, and the rule wider; the line replaces a power of depth.
    Claim(
        "Without norm, the signal doubles with every residual block.",
        measured("factor", "no norm", **FACTOR), DOUBLES, interest=0.1, exploratory=CHANGED,
    ),
    Claim(
        "With batch norm, the signal grows linearly with depth, by one with every block.",
        [measured("line", "slope", name="slope of the mean square over blocks"),
         measured("line", "bend", name="slope of the second half over that of the first")],
        within(0.9, 1.1), interest=0.1, exploratory=CHANGED,
    ),
    Claim(
        "Without one block the error rises more in the plain network of 20 layers than in the "
        "residual one of 20, on average over their blocks.",
        measured("rise", "plain20", **RISE) - measured("rise", "resnet20", **RISE), above(0),
        interest=10.0, measures=("plain20", "resnet20"),
    ),
    Claim(
        "The layers of a residual network respond less than a plain one's.",
        measured("response", "resnet20") - measured("response", "plain20"), below(SMALLER),
        interest=-SMALLER, measures=("resnet20", "plain20"),
    ),
    Claim(
        "The layers of a deeper residual network respond less.",
        measured("response", "resnet44") - measured("response", "resnet20"), below(SMALLER),
        interest=-SMALLER, measures=("resnet44", "resnet20"),
    ),
    Control(
        "Planted defect: with halved branches and no norm, the signal doubles with every block.",
        measured("factor", "halved branches", **FACTOR), DOUBLES, expected=("refuted",),
        defect=True, gate=False,
    ),
    Control(
        "A/A: without norm, the signal grows faster than with other samples of the weights.",
        measured("factor", "no norm") - measured("factor", "other weights"), above(0),
        expected=("inconclusive",), level=SAME_LEVEL,
    ),
    Control(
        "The same holds without all of these blocks of the residual network at once.",
        measured("all blocks", "resnet44", **RISE), GENTLE, expected=("refuted",),
    ),
    Control(
        "Untrained without norm, where all paths are alike, the gradient comes by short paths.",
        measured("ratio", "untrained", **LENGTH), SHORT, expected=("refuted",),
    ),
)  # fmt: skip
LABELS = {"resnet44": "residual, 44", "resnet20": "residual, 20", "plain20": "plain, 20"}
FIGURES = (
    value_lines(
        "lesions",
        "Rise of the test error without one block, whose input is passed on. Blocks that keep "
        "their input's shape; mean over seeds, band. After Veit et al. 2016, Figure 3.",
        {label: ("rise", name) for name, label in LABELS.items()},
        ("block that is left out", "rise of the test error (points)"),
        claim="Without one block the test error of the residual",
    ),
    value_lines(
        "paths",
        "Fraction of the gradient by the length of its paths, in residual-44. Dotted: the fraction "
        "of all paths. After Veit et al. 2016, Figure 6.",
        {"gradient": ("fraction",)}, ("residual branches on the path", "fraction"),
        x=range(SUMS + 1), claim="The gradient of a residual network",
        reference={"paths": [math.comb(SUMS, k) / 2**SUMS for k in range(SUMS + 1)]},
    ),
    value_lines(
        "signal",
        "Mean square of the signal by block, untrained. Dotted: doubling (Brock et al. 2021, 1).",
        {name: ("signal", name) for name in ("no norm", "batch norm")},
        ("block", "mean square of its output"), y_scale="log", claim="Without norm, the signal",
        reference={"doubling": [2.0 * 2**k for k in range(1, BLOCKS + 1)]},
    ),
    value_lines(
        "responses",
        "Standard deviation of each layer's response to images. After He et al. 2015, Figure 7.",
        {label: ("response", name) for name, label in LABELS.items()},
        ("layer", "standard deviation after batch norm"),
        claim="The layers of a residual network",
    ),
)  # fmt: skip
STUDY = Study(
    name="residual_signal",
    title="What do shortcuts do to the signal of a network?",
    lecture="ResNet: the residual mapping is easier to optimise",
    arms=ARMS,
    presets={
        "quick": Preset(
            "digits", 2, judged=False, rate=0.1,
            training={"epochs": 12, "batch_size": 64, "width": 8, "warmup_epochs": 4.0},
            sizes={"tested": 360, "paths": 4, "samples": 4},
        ),
        "small": Preset(
            "fashion_mnist_small", 6, pilots="degradation", training=LADDER,
            sizes={"tested": 1000, "paths": 32, "samples": 32},
        ),
        "gpu": Preset(
            "fashion_mnist", 6, pilots="degradation", training=LADDER_GPU,
            sizes={"tested": 4000, "paths": 32, "samples": 64},
        ),
    },
    measure=measure,
    claims=CLAIMS,
    figures=FIGURES,
    method=(
        "A lesion passes on a block's input in place of its output, on test images that differ by "
        "seed; the two blocks that change the shape of the map stay. The signal is that of random "
        "images in untrained towers, where zero padding and a finite width weaken it a little."
    ),
    limits=(
        "The mean over blocks hides which blocks matter. Each network has its own learning rate, "
        "so rate and shortcuts are not separated."
    ),
)  # fmt: skip

if __name__ == "__main__":
    run_command(lambda: run_study(STUDY, parse(Options)))
