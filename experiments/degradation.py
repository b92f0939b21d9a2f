"""Is a deeper plain network worse, and does the residual one repair it? (He et al. 2015, arXiv:1512.03385, Figures 1 and 6)

python experiments/degradation.py                                       # digits: about two minutes on two CPU cores
python experiments/degradation.py --dataset fashion_mnist
python experiments/degradation.py --depths 20 32 44 56 110              # more depths: the verdicts compare the first and the last
python experiments/degradation.py --norm none                           # without batch norm
python experiments/degradation.py --arm plain56                         # one arm alone, for a cluster's scheduler
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from deepjax.analysis import cross_entropy, kernel_norms
from deepjax.analysis.plots import depth_profile, error_curves, save
from deepjax.command import parse, run
from deepjax.data import dataset_info, sample
from deepjax.errors import require
from deepjax.models import create_model, model_info
from deepjax.study import study
from deepjax.study.arms import Arm, ArmResult
from deepjax.study.claims import errors_compared
from deepjax.study.figures import error_panels, log_ratio, norm_lines, times
from deepjax.study.networks import Stack
from deepjax.study.report import Picture
from deepjax.study.study import Evidence, Preset, Study, Subject, arm_of, conduct
from deepjax.study.verdict import NOT_SUPPORTED, Interval, Verdict, all_above, all_below, mean_interval

# The rules, fixed before the runs. MARGIN is under half of the 5.1 points that 20 -> 56 layers without shortcuts cost on CIFAR-10
# (Li et al. 2018: 8.18 -> 13.31 %). VANISHED is far above what vanishing would give: a factor of 0.9 a layer, over the 36 layers
# between the thirds, gives 0.02. Controls: the residual networks must not pass for worse, the plain ones not for as good, and a
# network of sigmoids, whose gradients do vanish (Glorot and Bengio 2010), must be found out.
MARGIN, VANISHED = 0.02, 0.1
RULES = {
    "worse": "Supported if both intervals lie above 0; refuted if one lies below it; else inconclusive.",
    "repaired": f"Supported if both intervals lie below a margin of +{100 * MARGIN:g} points (under half of the 5.1 points that "
    "depth costs plain networks on CIFAR-10 in Li et al. 2018); refuted if one lies above it; else inconclusive.",
    "gradients": f"Supported if every ratio lies above {VANISHED:g}; refuted if one lies below it; else inconclusive.",
}
PRESETS = {
    # Warm-up over a third of the training was chosen on seeds 1000 and 1001 of the residual networks; He et al. warm up at 110.
    "digits": Preset(
        "plain-56 near 75 %, plain-20 near 2.4 %, residual 20 and 56 near 1 % training error (a prototype, one seed, 15 epochs)",
        seeds=5,
        training={"epochs": 12, "batch_size": 64, "width": 8, "warmup_epochs": 4.0},
    ),
    # Cut to what two CPU cores finish in a quarter of an hour.
    "fashion_mnist": Preset(
        "nothing: no source is known for so short a training",
        rates=(0.1, 0.03),
        training={"epochs": 1, "batch_size": 128, "steps": 100, "width": 4, "warmup_epochs": 0.07},
    ),
    # The paper's recipe (section 4.2): 64k iterations, batch 128, 0.1 divided by ten at 32k and 48k, decay 1e-4 on everything.
    "cifar10": Preset(
        "test error of residual 20 / 56: 8.75 / 6.97 % (He et al., Table 6); plain 20 / 56: 8.18 / 13.31 % (Li et al. 2018); "
        "not measured here",
        seeds=5,
        training={"epochs": 164, "batch_size": 128, "steps": 64_000, "schedule": "step", "warmup_epochs": 0.0}
        | {"nesterov": False, "decay_all": True},
    ),
}


@dataclasses.dataclass(frozen=True)
class Options(study.Options):
    """Is a deeper plain network worse on training and test images, and does the residual one repair it?"""

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
    arms = {}
    for name in [f"{kind}{depth}" for depth in reversed(options.depths) for kind in ("plain", "resnet")]:
        bare = options.norm == "none"
        model = f"own/cifar_{name}_bare" if bare else f"cifar_{name}"
        make = partial(create_model, f"cifar_{name}", norm="none") if bare else None
        arms[name] = arm_of(name, model, options, preset, make)
    return arms


def measure(subject: Subject) -> dict[str, Any]:
    """Gradient norms by layer of a network of twenty sigmoids, at the start: the control of the third claim."""
    batch = sample(dataset_info(subject.dataset), 64, subject.seed, data_dir=subject.data_dir)
    model = Stack((3,) * 20, width=8, activation="sigmoid", norm=False)
    params = model.init(jax.random.key(subject.seed), batch["image"])["params"]
    outputs: Any = lambda params: model.apply({"params": params}, batch["image"])  # noqa: E731
    gradients = jax.grad(lambda params: cross_entropy(outputs(params), batch))(params)
    norms = {layer: float(norm) for layer, norm in kernel_norms(gradients).items()}
    return {"sigmoid": {layer: norms[layer] for layer in [*(f"conv{i}" for i in range(1, 21)), "head"]}}


def gradients(claim: str, values: dict[str, list[float]], **more: Any) -> Verdict:
    """Have the gradients of a network vanished towards the input? (He et al. 2015, section 4.1) values: log10 ratios by seed."""
    effects: dict[str, Interval] = {moment: mean_interval(logs) for moment, logs in values.items()}
    found = tuple(f"{moment}, the gradient near the input is {times(e)} that near the output" for moment, e in effects.items())
    how = "Gradient norm by convolution: median of the third nearest the input over median of the third nearest the output, log10."
    outcome = all_above(list(effects.values()), float(np.log10(VANISHED)))
    return Verdict(claim, how, RULES["gradients"], outcome, found, effects, values, **more)


def judge(evidence: Evidence) -> list[Verdict]:
    """Three claims, and three controls by the same rules."""
    arms, depths = evidence.arms, evidence.options.depths  # pyright: ignore[reportAttributeAccessIssue]
    first, last = depths[0], depths[-1]
    deepest = {"at the first step": arms[f"plain{last}"].first(), "in the last epoch": arms[f"plain{last}"].last()}
    ratios = {moment: [log_ratio(norms) for norms in by_seed] for moment, by_seed in deepest.items()}
    sigmoids = {"at the start": [log_ratio(norms) for norms in evidence.values("sigmoid")]}
    plain, residual = ({d: (f"{d} layers", arms[f"{kind}{d}"]) for d in depths} for kind in ("plain", "resnet"))
    both = "on training and on test images"

    def worse(kind: str, of: Any, **more: Any) -> Verdict:
        claim = f"The {kind} network of {last} layers is worse than that of {first} {both}."
        return errors_compared(claim, of[last], of[first], RULES["worse"], partial(all_above, bound=0.0), **more)

    def repaired(kind: str, of: Any, **more: Any) -> Verdict:
        claim = f"The {kind} network of {last} layers is not worse than that of {first} {both}."
        return errors_compared(claim, of[last], of[first], RULES["repaired"], partial(all_below, bound=MARGIN), **more)

    return [
        worse("plain", plain),
        repaired("residual", residual),
        gradients(f"The gradients of the plain network of {last} layers have not vanished.", ratios),
        worse("residual", residual, control=NOT_SUPPORTED),
        repaired("plain", plain, control=NOT_SUPPORTED),
        gradients("The gradients of twenty layers of sigmoids have not vanished.", sigmoids, control=("refuted",)),
    ]


def draw(evidence: Evidence, out: Path) -> list[Picture]:
    """Both figures, from the rows; each title states the finding."""
    depths, dataset = evidence.options.depths, evidence.options.dataset  # pyright: ignore[reportAttributeAccessIssue]
    plain, residual = ({d: evidence.arms[f"{kind}{d}"] for d in depths} for kind in ("plain", "resnet"))
    panels, x_label, how = error_panels({"Plain": plain, "Residual": residual})
    profiles = []
    for moment, norms in {"first step": ArmResult.first, "last epoch": ArmResult.last}.items():
        ratio = 10 ** float(np.mean([log_ratio(by_layer) for by_layer in norms(evidence.arms[f"plain{depths[-1]}"])]))
        title = f"{moment}: plain-{depths[-1]}'s gradient\nnear the input is {ratio:.3g} times that near the output"
        lines = norm_lines({f"plain, {d} layers": arm for d, arm in plain.items()}, norms, "-")
        lines += norm_lines({f"residual, {d} layers": arm for d, arm in residual.items()}, norms, "--")
        profiles.append((title, lines))
    band = f"Error on {dataset} {how}; mean over seeds, band from the best to the worst seed. "
    return [
        Picture(
            save(error_curves(panels, x_label), out / "error.png"),
            band + "Circles: final training error in evaluation mode. After He et al. 2015, Fig. 6.",
        ),
        Picture(
            save(depth_profile(profiles, "gradient norm of the layer's kernel"), out / "gradients.png"),
            "Norm of the loss's gradient by layer; geometric mean over seeds, band from least to greatest.",
        ),
    ]


METHOD = [
    "If a deeper network overfitted, it would be better on the training images and worse on the test images. If it is worse on "
    "both, it was not trained well: optimisation is the problem. A residual one adds to the output of every two layers their "
    "input; the plain one does not. Both have equal parameters (He et al. 2015, section 4.2: 6n + 2 layers).",
    "Each network is trained once at each rate; the rate of the lowest final training error is repeated for the other seeds.",
]
STUDY = Study(
    name="degradation",
    lecture="ResNet: the deeper plain model performs worse on both training and test error, so it is not overfitting",
    title="Does depth hurt a plain network, and does the residual one repair it?",
    question="The layers beyond the first twenty need only pass on what they are given: so a deeper network should never do worse "
    "on the images that it is trained on. Does it?",
    presets=PRESETS,
    arms=make_arms,
    measure=measure,
    judge=judge,
    draw=draw,
    method=lambda evidence: METHOD,
    limits=lambda evidence: ["Per-channel mean and deviation are used, where the paper subtracts the mean of each pixel."],
)

if __name__ == "__main__":
    run(lambda: conduct(STUDY, parse(Options)))
