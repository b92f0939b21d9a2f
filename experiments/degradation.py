"""Is a deeper plain network worse, and does the residual one repair it? (He et al. 2015, arXiv:1512.03385, Figures 1 and 6)

python experiments/degradation.py                            # digits: 2.5 minutes on two CPU cores; or --dataset fashion_mnist
python experiments/degradation.py --depths 20 32 44 56 110   # more depths: the verdicts compare the first and the last
python experiments/degradation.py --norm none --arm plain56  # without batch norm; one arm alone, for a cluster's scheduler
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any, Literal

from deepjax.analysis.plots import depth_profile, error_curves, save
from deepjax.command_line import parse, run
from deepjax.data import dataset_info, sample
from deepjax.errors import require
from deepjax.models import create_model, model_info
from deepjax.study import study
from deepjax.study.arms import Arm
from deepjax.study.report.curves import error_panels
from deepjax.study.report.html import Figure
from deepjax.study.stats.claims import compare_errors
from deepjax.study.stats.verdict import NOT_SUPPORTED, Verdict, all_above, all_below
from deepjax.study.study import Preset, SeedContext, Study, StudyResults, make_arm, run_study
from deepjax.study.vanishing import profile_panels, sigmoid_norms, vanishing

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
DECIDE = {"worse": partial(all_above, bound=0.0), "repaired": partial(all_below, bound=MARGIN)}
PRESETS = {
    # Warm-up over a third of the training was chosen on seeds 1000 and 1001 of the residual networks; He et al. warm up at 110.
    "digits": Preset(
        "plain-56 near 75 %, plain-20 near 2.4 %, residual 20 and 56 near 1 % training error (a prototype, one seed, 15 epochs)",
        seeds=5,
        training={"epochs": 12, "batch_size": 64, "width": 8, "warmup_epochs": 4.0},
    ),
    "fashion_mnist": Preset(  # cut to what two CPU cores finish in a quarter of an hour
        "nothing: no source is known for so short a training",
        rates=(0.1, 0.03),
        training={"epochs": 1, "steps": 100, "width": 4, "warmup_epochs": 0.07},
    ),
    # The paper's recipe (section 4.2): 64k iterations, batch 128, 0.1 divided by ten at 32k and 48k, decay 1e-4 on everything.
    "cifar10": Preset(
        "test error: residual 20 / 56 8.75 / 6.97 % (He et al.), plain 8.18 / 13.31 % (Li et al. 2018); not measured here",
        seeds=5,
        training={
            "steps": 64_000,
            "schedule": "step",
            "warmup_epochs": 0.0,
            "nesterov": False,
            "decay_norm_and_bias": True,
        },
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
    names = [f"{kind}{depth}" for depth in reversed(options.depths) for kind in ("plain", "resnet")]
    if options.norm == "batch":
        return {name: make_arm(name, f"cifar_{name}", options, preset) for name in names}
    bare = partial(partial, create_model, norm="none")
    return {
        name: make_arm(name, f"own/cifar_{name}_bare", options, preset, bare(f"cifar_{name}"))
        for name in names
    }


def measure(subject: SeedContext) -> dict[str, Any]:
    """The control of the third claim."""
    batch = sample(dataset_info(subject.dataset), 64, subject.seed, data_dir=subject.data_dir)
    return {"sigmoid": sigmoid_norms(batch, subject.seed)}


def judge(evidence: StudyResults) -> list[Verdict]:
    """Three claims, and three controls by the same rules."""
    arms, depths = evidence.arms, evidence.options.depths  # pyright: ignore[reportAttributeAccessIssue]
    first, *_, last = depths
    profiles = {
        "at the first step": arms[f"plain{last}"].first(),
        "in the last epoch": arms[f"plain{last}"].last(),
    }
    sigmoids = {"at the start": evidence.values("sigmoid")}
    fine = partial(vanishing, rule=RULES["gradients"], bound=VANISHED)

    def compared(kind: str, rule: str, **more: Any) -> Verdict:
        one, other = ((f"{depth} layers", arms[f"{kind}{depth}"]) for depth in (last, first))
        name, worse = (
            {"plain": "plain", "resnet": "residual"}[kind],
            {"worse": "worse", "repaired": "not worse"}[rule],
        )
        claim = f"The {name} network of {last} layers is {worse} than that of {first} on training and on test images."
        return compare_errors(claim, one, other, RULES[rule], DECIDE[rule], **more)

    return [
        compared("plain", "worse"),
        compared("resnet", "repaired"),
        fine(f"The gradients of the plain network of {last} layers have not vanished.", profiles),
        compared("resnet", "worse", control=NOT_SUPPORTED),
        compared("plain", "repaired", control=NOT_SUPPORTED),
        fine(
            "The gradients of twenty layers of sigmoids have not vanished.",
            sigmoids,
            control=("refuted",),
        ),
    ]


def draw(evidence: StudyResults, out: Path) -> list[Figure]:
    """Both figures, from the rows; each title states the finding."""
    depths, dataset = evidence.options.depths, evidence.options.dataset  # pyright: ignore[reportAttributeAccessIssue]
    plain, residual = (
        {d: evidence.arms[f"{kind}{d}"] for d in depths} for kind in ("plain", "resnet")
    )
    panels, x_label, how = error_panels({"Plain": plain, "Residual": residual})
    band = f"Error on {dataset} {how}; mean over seeds, band from the best to the worst seed. "
    circles = "Circles: final training error in evaluation mode. After He et al. 2015, Fig. 6."
    norms = "Norm of the loss's gradient by layer; geometric mean over seeds, band from least to greatest."
    profile = depth_profile(profile_panels(plain, residual), "gradient norm of the layer's kernel")
    error = save(error_curves(panels, x_label), out / "error.png")
    return [Figure(error, band + circles), Figure(save(profile, out / "gradients.png"), norms)]


METHOD = (
    "If a deeper network overfitted, it would be better on the training images and worse on the test images. If it is worse on "
    "both, optimisation is the problem. A residual network adds to the output of every two layers their input; the plain one "
    "does not. Both have equal parameters (He et al. 2015, section 4.2). Each takes the best of the same rates."
)
STUDY = Study(
    name="degradation",
    lecture="ResNet: the deeper plain model performs worse on both training and test error, so it is not overfitting",
    title="Does depth hurt a plain network, and does the residual one repair it?",
    question="More layers need only pass on what they are given, so they should never do worse on the training images. Do they?",
    presets=PRESETS,
    arms=make_arms,
    measure=measure,
    judge=judge,
    draw=draw,
    method=lambda evidence: [METHOD],
    limits=lambda evidence: [
        "Per-channel mean and deviation are used, where the paper subtracts the mean of each pixel."
    ],
)

if __name__ == "__main__":
    run(lambda: run_study(STUDY, parse(Options)))
