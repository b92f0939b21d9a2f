"""Is a deeper plain network worse, and does the residual one repair it?

He et al. 2015 (arXiv:1512.03385), Figures 1 and 6.

python experiments/degradation.py --dataset fashion_mnist    # digits: 2.5 minutes on two CPU cores
python experiments/degradation.py --depths 20 32 44 56 110   # verdicts: the first and the last
python experiments/degradation.py --norm none --arm plain56  # one arm alone, for a scheduler
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from deepjax.analysis import cross_entropy, init_variables, kernel_norms
from deepjax.analysis.plots import depth_profile, error_curves, save
from deepjax.command_line import parse, run_command
from deepjax.data import dataset_info, sample
from deepjax.errors import require
from deepjax.models import create_model, model_info
from deepjax.study import study
from deepjax.study.arm_result import ArmResult
from deepjax.study.arms import Arm
from deepjax.study.networks import Stack
from deepjax.study.report.html import Figure
from deepjax.study.report.plots import LinesPanel, error_panels, norm_curves
from deepjax.study.runner import run_study
from deepjax.study.stats.claims import compare_errors
from deepjax.study.stats.intervals import format_ratio, mean_interval
from deepjax.study.stats.rules import Rule, all_above, all_below
from deepjax.study.stats.verdict import NOT_SUPPORTED, Outcome, Verdict
from deepjax.study.study import HE_2015_CIFAR, Preset, SeedContext, Study, StudyResults, make_arm

# Rules, fixed before the runs. MARGIN is under half of the 5.1 points that 20 -> 56 layers without
# shortcuts cost on CIFAR-10 (Li et al. 2018: 8.18 -> 13.31 %). VANISHED is far above the ratio of
# vanishing gradients: a factor of 0.9 per layer gives 0.02 over the 36 layers between the thirds.
# Controls: residual networks must not be judged worse, plain ones not as good, and gradients of a
# network of sigmoids, which do vanish (Glorot and Bengio 2010), must be judged vanished.
MARGIN, VANISHED = 0.02, 0.1
WORSE = Rule(
    "Supported if both intervals lie above 0; refuted if one lies below it; else inconclusive.",
    partial(all_above, bound=0.0),
)
NOT_WORSE = Rule(
    f"Supported if both intervals lie below a margin of +{100 * MARGIN:g} points (under half of "
    "the 5.1 points that depth costs plain networks on CIFAR-10 in Li et al. 2018); refuted if "
    "one lies above it; else inconclusive.",
    partial(all_below, bound=MARGIN),
)
RULE_GRADIENTS = (
    f"Supported if every ratio lies above {VANISHED:g}; refuted if one lies below it; else "
    "inconclusive."
)
PRESETS = {
    # Warm-up over a third of the training was chosen on seeds 1000 and 1001 of the residual
    # networks; He et al. warm up ResNet-110.
    "digits": Preset(
        "plain-56 near 75 %, plain-20 near 2.4 %, residual 20 and 56 near 1 % training error (a "
        "prototype, one seed, 15 epochs)",
        seeds=5,
        training={"epochs": 12, "batch_size": 64, "width": 8, "warmup_epochs": 4.0},
    ),
    "fashion_mnist": Preset(  # cut to what two CPU cores finish in a quarter of an hour
        "nothing: no source is known for so short a training",
        rates=(0.1, 0.03),
        training={"epochs": 1, "steps": 100, "width": 4, "warmup_epochs": 0.07},
    ),
    # The paper's recipe (section 4.2): 64k iterations, batch 128, 0.1 divided by ten at 32k and
    # 48k, decay 1e-4 on everything.
    "cifar10": Preset(
        "test error: residual 20 / 56 8.75 / 6.97 % (He et al.), plain 8.18 / 13.31 % (Li et al. "
        "2018); not measured here",
        seeds=5,
        training=HE_2015_CIFAR,
    ),
}


# By moment and seed: gradient norm by layer, from input to output.
Profiles = Mapping[str, Sequence[Mapping[str, float]]]
MEASURE = (
    "Gradient norm by convolution: median of the third nearest the input over median of the third "
    "nearest the output, log10; mean over seeds with Student's 95 % interval."
)


def log_ratio(norms: Mapping[str, float]) -> float:
    """log10 of the gradient norm near the input over that near the output.

    Medians over the third of the convolutions nearest to each; norms: by layer, in the order of the
    forward pass. The last layer, the classifier, does not count.
    """
    convolutions = list(norms.values())[:-1]
    third = len(convolutions) // 3
    return float(np.log10(np.median(convolutions[:third]) / np.median(convolutions[-third:])))


def vanishing(claim: str, profiles: Profiles, control: tuple[Outcome, ...] = ()) -> Verdict:
    """Supported if near-input over near-output is above VANISHED at every moment: no vanishing."""
    values = {
        moment: [log_ratio(norms) for norms in by_seed] for moment, by_seed in profiles.items()
    }
    effects = {moment: mean_interval(logs) for moment, logs in values.items()}
    found = tuple(
        f"{moment}, the gradient near the input is {format_ratio(e)} that near the output"
        for moment, e in effects.items()
    )
    outcome = all_above(list(effects.values()), float(np.log10(VANISHED)))
    return Verdict(claim, MEASURE, RULE_GRADIENTS, outcome, found, effects, values, control)


def sigmoid_norms(batch: Mapping[str, Any], seed: int, layers: int = 20) -> dict[str, float]:
    """Gradient norm by layer of an untrained network of sigmoids, in which gradients vanish.

    Glorot and Bengio 2010.
    """
    model = Stack((3,) * layers, width=8, activation="sigmoid", norm=False)
    params = init_variables(model, jax.random.key(seed), batch["image"].shape)["params"]

    def loss(params: Any) -> jax.Array:
        logits: Any = model.apply({"params": params}, batch["image"])
        return cross_entropy(logits, batch)

    norms = {
        layer: float(norm) for layer, norm in kernel_norms(jax.jit(jax.grad(loss))(params)).items()
    }
    return {layer: norms[layer] for layer in [*(f"conv{i}" for i in range(1, layers + 1)), "head"]}


def profile_panels(
    plain: Mapping[int, ArmResult], residual: Mapping[int, ArmResult]
) -> list[LinesPanel]:
    """Gradient norm by layer at the first step and in the last epoch, arms by depth.

    Titles have the ratio of the deepest plain network.
    """
    panels, deepest = [], max(plain)
    for moment, norms in {"first step": ArmResult.first, "last epoch": ArmResult.last}.items():
        ratio = 10 ** float(np.mean([log_ratio(by_layer) for by_layer in norms(plain[deepest])]))
        curves = []
        for kind, arms, line in (("plain", plain, "-"), ("residual", residual, "--")):
            named = {f"{kind}, {depth} layers": arm for depth, arm in arms.items()}
            curves += norm_curves(named, norms, line)
        title = f"{moment}: plain-{deepest}'s gradient\n"
        title += f"near the input is {ratio:.3g} times that near the output"
        panels.append((title, curves))
    return panels


@dataclasses.dataclass(frozen=True)
class Options(study.Options):
    """Is a deeper plain network worse on both sets, and does the residual one repair it?"""

    depths: tuple[int, ...] = (20, 56)
    """Depths, of the form 6n + 2; the verdicts compare the first with the last."""
    norm: Literal["batch", "none"] = "batch"
    """Batch norm, as in the paper, or biases alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        rising = len(self.depths) >= 2 and list(self.depths) == sorted(set(self.depths))
        require(rising, "depths", self.depths, "two or more, rising, such as 20 56")
        for depth in self.depths:
            model_info(f"cifar_plain{depth}")


def make_arms(options: Any, preset: Preset) -> dict[str, Arm]:
    """The arms by name, deepest first: plain56, resnet56, plain20, resnet20."""
    names = [f"{kind}{depth}" for depth in reversed(options.depths) for kind in ("plain", "resnet")]
    if options.norm == "batch":
        return {name: make_arm(name, f"cifar_{name}", options, preset) for name in names}
    bare = partial(partial, create_model, norm="none")
    return {
        name: make_arm(name, f"own/cifar_{name}_bare", options, preset, bare(f"cifar_{name}"))
        for name in names
    }


def measure(context: SeedContext) -> dict[str, Any]:
    """The control of the third claim."""
    batch = sample(dataset_info(context.dataset), 64, context.seed, data_dir=context.data_dir)
    return {"sigmoid": sigmoid_norms(batch, context.seed)}


def judge(results: StudyResults) -> list[Verdict]:
    """Three claims, and three controls by the same rules."""
    arms, depths = results.arms, results.options.depths  # pyright: ignore[reportAttributeAccessIssue]
    first, *_, last = depths
    profiles = {
        "at the first step": arms[f"plain{last}"].first(),
        "in the last epoch": arms[f"plain{last}"].last(),
    }
    sigmoids = {"at the start": results.values("sigmoid")}

    def compare(kind: str, rule: Rule, control: tuple[Outcome, ...] = ()) -> Verdict:
        one, other = ((f"{depth} layers", arms[f"{kind}{depth}"]) for depth in (last, first))
        name = {"plain": "plain", "resnet": "residual"}[kind]
        worse = "worse" if rule is WORSE else "not worse"
        claim = (
            f"The {name} network of {last} layers is {worse} than that of {first} on training and "
            "on test images."
        )
        return compare_errors(claim, one, other, rule, control=control)

    return [
        compare("plain", WORSE),
        compare("resnet", NOT_WORSE),
        vanishing(
            f"The gradients of the plain network of {last} layers have not vanished.", profiles
        ),
        compare("resnet", WORSE, control=NOT_SUPPORTED),
        compare("plain", NOT_WORSE, control=NOT_SUPPORTED),
        vanishing(
            "The gradients of twenty layers of sigmoids have not vanished.",
            sigmoids,
            control=("refuted",),
        ),
    ]


def draw(results: StudyResults, out: Path) -> list[Figure]:
    """Both figures, from the rows; each title states the finding."""
    depths, dataset = results.options.depths, results.options.dataset  # pyright: ignore[reportAttributeAccessIssue]
    plain, residual = (
        {d: results.arms[f"{kind}{d}"] for d in depths} for kind in ("plain", "resnet")
    )
    panels, x_label, how = error_panels({"Plain": plain, "Residual": residual})
    band = f"Error on {dataset} {how}; mean over seeds, band from the best to the worst seed. "
    circles = "Circles: final training error in evaluation mode. After He et al. 2015, Fig. 6."
    norms = (
        "Norm of the loss's gradient by layer; geometric mean over seeds, band from least to "
        "greatest."
    )
    profile = depth_profile(profile_panels(plain, residual), "gradient norm of the layer's kernel")
    error = save(error_curves(panels, x_label), out / "error.png")
    return [Figure(error, band + circles), Figure(save(profile, out / "gradients.png"), norms)]


METHOD = (
    "If a deeper network overfitted, it would be better on the training images and worse on the "
    "test images. If it is worse on both, optimisation is the problem. A residual network adds to "
    "the output of every two layers their input; the plain one does not. Both have equal "
    "parameters (He et al. 2015, section 4.2). Each takes the best of the same rates."
)
STUDY = Study(
    name="degradation",
    lecture=(
        "ResNet: the deeper plain model performs worse on both training and test error, so it is "
        "not overfitting"
    ),
    title="Does depth hurt a plain network, and does the residual one repair it?",
    question=(
        "More layers need only pass on what they are given, so they should never do worse on the "
        "training images. Do they?"
    ),
    presets=PRESETS,
    arms=make_arms,
    measure=measure,
    judge=judge,
    draw=draw,
    method=lambda results: [METHOD],
    limits=lambda results: [
        "Per-channel mean and deviation are used, where the paper subtracts the mean of each pixel."
    ],
)

if __name__ == "__main__":
    run_command(lambda: run_study(STUDY, parse(Options)))
